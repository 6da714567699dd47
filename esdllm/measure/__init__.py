"""Questions asked of a model or a run: what it costs, how good it is, how fast, what changes, how to set it."""
