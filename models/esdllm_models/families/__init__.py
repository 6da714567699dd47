"""The model families of this package, one file each: how a config.json is read, what weights and special tokens are called."""
