"""What clients do with a server, and what works: one function a client, which yields what works and raises at what does not."""
