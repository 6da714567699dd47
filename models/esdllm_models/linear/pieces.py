"""Weights as they are, multiplied in float32, some output features at a time: for a processor that multiplies nothing narrower.

MKL is slow for few rows and many output features; a piece stays in a core's cache. A bfloat16 piece is turned to float32 there.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

__all__ = ["Pieces"]

_OUTPUTS = 256  # features of a piece

_LIBRARY = torch.library.Library("esdllm_models", "FRAGMENT")
_LIBRARY.define("pieces(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


@attrs.frozen(eq=False)
class Pieces:
    """A matrix in full, in any dtype; inputs and sums in float32, so that nothing is lost of a narrower weight."""

    weight: Tensor
    """(O, I)"""
    bias: Tensor | None = None
    """(O,)"""

    def __call__(self, x: Tensor) -> Tensor:
        """Return x (..., I) times the matrix, and the bias."""
        multiply = torch.ops.esdllm_models.pieces if torch.compiler.is_compiling() else _pieces
        product: Tensor = multiply(x, self.weight, self.bias)
        return product


def _pieces(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1]).float()
    made = rows.new_empty(len(rows), len(weight))
    for piece, part in zip(weight.split(_OUTPUTS), made.split(_OUTPUTS, dim=1), strict=True):
        torch.mm(rows, piece.float().t(), out=part)
    if bias is not None:
        made.add_(bias)
    return made.to(x.dtype).reshape(*x.shape[:-1], len(weight))


def _pieces_shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


_LIBRARY.impl("pieces", _pieces, "CompositeExplicitAutograd")
torch.library.register_fake("esdllm_models::pieces", _pieces_shape, lib=_LIBRARY)
