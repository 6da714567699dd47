"""Many requests at once over one engine: who waits, who is decoded, and what is told of each."""
