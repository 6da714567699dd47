"""Rounding of weights and inputs to whole numbers with a step."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["GROUP", "LEVELS", "chunks", "four_bits", "pack_eight", "pack_four", "whole_numbers"]

GROUP = 32
"""input features that share a step in 4 bits"""
LEVELS = 127
"""the largest whole number in 8 bits; the least is as far from 0"""

_CHUNK = 1024 * 1024  # values of a weight that stand in full while it is quantised or multiplied


def whole_numbers(x: Tensor, most: int = LEVELS) -> tuple[Tensor, Tensor]:
    """Return x (..., I) in whole numbers from -most to most, float32, and each row's step, (..., 1) float32."""
    x = x.float()
    step = x.abs().amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny * most) / most
    return (x / step).round_(), step


def pack_eight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight (O, I) in whole numbers, int8, and each output feature's step, (O,) float32."""
    levels = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    for rows in chunks(*weight.shape):
        found, step = whole_numbers(weight[rows])
        levels[rows], scale[rows] = found.to(torch.int8), step[:, 0]
    return levels, scale


def pack_four(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight (O, I) in 4 bits in the CPU kernel's layout, (O', I / 2) uint8, and steps and middles (I / 32, O', 2).

    O' is O filled up to a multiple of 16.
    """
    outputs, inputs = weight.shape
    filled = outputs + -outputs % 16
    packed = torch.empty(filled, inputs // 2, dtype=torch.uint8)
    ranges = torch.empty(inputs // GROUP, filled, 2, dtype=torch.bfloat16)
    for rows in chunks(filled, inputs):
        part = weight[rows]
        part = torch.nn.functional.pad(part, (0, 0, 0, len(range(filled)[rows]) - len(part)))
        levels, found = four_bits(part)
        packed[rows] = torch.ops.aten._convert_weight_to_int4pack_for_cpu(levels, 1)
        ranges[:, rows] = found
    return packed, ranges


def four_bits(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight (O, I) in whole numbers from 0 to 15, int32, and each group's step and middle, (I / 32, O, 2) bfloat16.

    A weight is about (number - 8) * step + middle.
    """
    groups = weight.float().unflatten(-1, (-1, GROUP))
    least, most = groups.aminmax(dim=-1, keepdim=True)
    step = ((most - least) / 15).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
    middle = (least + 8 * step).bfloat16()
    levels = ((groups - middle) / step + 8).round_().clamp_(0, 15)
    return levels.flatten(1).to(torch.int32), torch.cat([step, middle], dim=-1).transpose(0, 1)


def chunks(outputs: int, inputs: int) -> list[slice]:
    """Return the rows of a weight (O, I) in parts that a cache holds, each but the last a multiple of 64 (for 4 bits)."""
    size = max(64, _CHUNK // inputs // 64 * 64)
    return [slice(first, min(first + size, outputs)) for first in range(0, outputs, size)]
