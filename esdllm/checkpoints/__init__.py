"""From a checkpoint's files to a model: weights, dtypes, names, tokenizers, templates."""
