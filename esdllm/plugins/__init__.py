"""Finding what is installed, and building components from it by name."""
