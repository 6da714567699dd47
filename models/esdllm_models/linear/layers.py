"""What a layer's matrices are to the transformer: something that maps features to features.

A `Linear` may be a tensor in full (`Dense`), one of this room's kernels, a module that somebody else made, or several side by
side (`Split`). Weights that read the same input are one `Linear` where they can be one
tensor; `sliced` gives a part of it.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Protocol

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from esdllm_models.linear.pieces import Pieces

__all__ = ["Dense", "Linear", "Sliced", "Split", "sliced"]


class Linear(Protocol):
    """Maps features (..., I) to features (..., O), each row by itself."""

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., O) of x (..., I), in x's dtype."""
        ...


@attrs.frozen(eq=False)
class Dense:
    """A matrix in full."""

    weight: Tensor
    """(O, I)"""
    bias: Tensor | None = None
    """(O,)"""

    def __call__(self, x: Tensor) -> Tensor:
        """Return x (..., I) times the matrix, and the bias."""
        return F.linear(x, self.weight, self.bias)


@attrs.frozen(eq=False)
class Split:
    """Several side by side, for tensors that lie apart."""

    parts: tuple[Linear, ...]
    sizes: tuple[int, ...]
    """O of each"""

    def __call__(self, x: Tensor) -> Tensor:
        """Return the parts' outputs of x (..., I), one after the other."""
        return torch.cat([part(x) for part in self.parts], dim=-1)


@attrs.frozen(eq=False)
class Sliced:
    """Some of the features of one that cannot be sliced: all are computed, the others thrown away."""

    whole: Linear
    first: int
    stop: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return the features `first` to `stop` of what the whole makes of x (..., I)."""
        return self.whole(x)[..., self.first : self.stop]


def sliced(whole: Linear, first: int, stop: int) -> Linear:
    """Return what computes the output features `first` to `stop`, without a copy of any weight."""
    if isinstance(whole, (Dense, Pieces)):
        return type(whole)(whole.weight[first:stop], None if whole.bias is None else whole.bias[first:stop])
    if isinstance(whole, Split):
        ends = list(accumulate(whole.sizes, initial=0))
        if first in ends and stop in ends:
            chosen = slice(ends.index(first), ends.index(stop))
            parts = whole.parts[chosen]
            return parts[0] if len(parts) == 1 else Split(parts, whole.sizes[chosen])
    return Sliced(whole, first, stop)
