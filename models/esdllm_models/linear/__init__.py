"""Linear layers: one file a kernel, and the table of them all (`kernels`)."""

from esdllm_models.linear.layers import Dense, Linear, Sliced, Split, sliced

__all__ = ["Dense", "Linear", "Sliced", "Split", "sliced"]
