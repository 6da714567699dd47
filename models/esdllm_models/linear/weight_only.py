"""Weights in fewer bits, and inputs as they are."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from esdllm_models.linear.rounding import GROUP, chunks, pack_eight, pack_four

__all__ = ["Int4WeightOnly", "Int8WeightOnly"]

_FEW = 16  # rows of an input, up to which the weight-only kernel is faster than turning the weights back

_LIBRARY = torch.library.Library("esdllm_models", "FRAGMENT")
_LIBRARY.define("int8_weight_only(Tensor x, Tensor levels, Tensor scale) -> Tensor")


@attrs.frozen(eq=False)
class Int8WeightOnly:
    """8-bit weights; inputs in the model's dtype."""

    levels: Tensor
    """(O, I) int8"""
    scale: Tensor
    """(O,) of the model's dtype"""
    bias: Tensor | None
    """(O,)"""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Int8WeightOnly:
        """Return the layer of a weight (O, I) and a bias (O,)."""
        levels, scale = pack_eight(weight)
        return cls(levels, scale.to(weight.dtype), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., O) of x (..., I)."""
        rows = x.reshape(-1, x.shape[-1])
        product: Tensor = torch.ops.esdllm_models.int8_weight_only(rows, self.levels, self.scale)
        product = product.reshape(*x.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


@attrs.frozen(eq=False)
class Int4WeightOnly:
    """4-bit weights on the CPU; inputs in bfloat16."""

    packed: Tensor
    """(O', I / 2) uint8, two weights a byte, in the kernel's own layout; O' is O filled up to a multiple of 16"""
    ranges: Tensor
    """(I / 32, O', 2) bfloat16, step and middle of each group"""
    outputs: int
    """O"""
    bias: Tensor | None
    """(O,)"""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Int4WeightOnly:
        """Return the layer of a weight (O, I) and a bias (O,)."""
        return cls(*pack_four(weight), len(weight), bias)

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., O) of x (..., I)."""
        rows = x.reshape(-1, x.shape[-1])
        product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.ranges)
        product = product[:, : self.outputs].reshape(*x.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


def _int8_weight_only(x: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
    """Return (M, O) of x (M, I): by torch's kernel for few rows; for many the weights are turned back, some at a time."""
    if x.device.type != "cpu":  # where a launch costs more than what a cache saves
        return (x @ levels.to(x.dtype).t()).mul_(scale)
    if len(x) <= _FEW:
        product: Tensor = torch.ops.aten._weight_int8pack_mm(x.contiguous(), levels, scale)
        return product
    made = x.new_empty(len(x), len(levels))
    for rows in chunks(*levels.shape):
        made[:, rows] = x @ levels[rows].to(x.dtype).t()
    return made.mul_(scale)


def _int8_weight_only_shape(x: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], levels.shape[0])


_LIBRARY.impl("int8_weight_only", _int8_weight_only, "CompositeExplicitAutograd")
torch.library.register_fake("esdllm_models::int8_weight_only", _int8_weight_only_shape, lib=_LIBRARY)
