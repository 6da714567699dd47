"""A run from settings and prompts to tokens: the engine, its canvas, its steps, and what watches over its components."""
