"""The arithmetic of linear layers: rounding weights and inputs, and products that torch's kernels compute.

To the compiler the products are operators of their own, for inductor asks of oneDNN's kernels that weights be constants. Eager
calls go past them: an operator written in Python costs microseconds a call.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from esdllm import multiplies_bfloat16

__all__ = [
    "GROUP",
    "four_bits",
    "has_onednn",
    "in_bytes",
    "int8_is_exact",
    "pack",
    "pack_eight",
    "pack_four",
    "packs",
    "whole_numbers",
]

GROUP = 32
"""input features that share a step in 4 bits"""

_LEVELS = 127
_ZERO = 128  # the byte that stands for 0, since the kernel multiplies unsigned by signed bytes
_CHUNK = 1024 * 1024  # values of a weight that stand in full while it is quantised or multiplied
_ROWS = 16  # of an input, for which oneDNN lays a weight out; the layout serves any number
_FEW = 16  # rows of an input, up to which the weight-only kernel is faster than turning the weights back

_LIBRARY = torch.library.Library("esdllm_models", "DEF")
_LIBRARY.define("packed(Tensor x, Tensor packed, Tensor? bias, int outputs) -> Tensor")
_LIBRARY.define("int8(Tensor rows, Tensor packed, Tensor scale, Tensor zero) -> Tensor")
_LIBRARY.define("int8_weight_only(Tensor x, Tensor levels, Tensor scale) -> Tensor")


def whole_numbers(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x (..., I) in whole numbers from -127 to 127, float32, and each row's step, (..., 1) float32."""
    x = x.float()
    step = x.abs().amax(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny * _LEVELS) / _LEVELS
    return (x / step).round_(), step


def in_bytes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x (..., I) as the unsigned bytes that `int8` takes, and each row's step, (..., 1) float32."""
    levels, step = whole_numbers(x)
    return levels.add_(_ZERO).to(torch.uint8), step


def pack_eight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a weight (O, I) in whole numbers, int8, and each output feature's step, (O,) float32."""
    levels = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    scale = torch.empty(len(weight), dtype=torch.float32, device=weight.device)
    for rows in _chunks(*weight.shape):
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
    for rows in _chunks(filled, inputs):
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


def _chunks(outputs: int, inputs: int) -> list[slice]:
    """Return the rows of a weight (O, I) in parts, each but the last a multiple of 64, as the 4-bit layout has them."""
    size = max(64, _CHUNK // inputs // 64 * 64)
    return [slice(first, min(first + size, outputs)) for first in range(0, outputs, size)]


def pack(weight: Tensor) -> Tensor:
    """Return a bfloat16 weight (O, I) in the layout in which oneDNN multiplies, which it otherwise makes at each call."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
    return packed


def packed(x: Tensor, weight: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """Return (..., O) of x (..., I) and a weight from `pack`."""
    if torch.compiler.is_compiling():
        product: Tensor = torch.ops.esdllm_models.packed(x, weight, bias, outputs)
        return product
    return _packed(x, weight, bias, outputs)


def int8(rows: Tensor, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Return (..., O) float32 of rows (..., I) from `in_bytes`: the whole numbers' product times the weights' scale (O,)."""
    if torch.compiler.is_compiling():
        product: Tensor = torch.ops.esdllm_models.int8(rows, weight, scale, zero)
        return product
    return _int8(rows, weight, scale, zero)


def _packed(x: Tensor, weight: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _int8(rows: Tensor, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    nothing: list[float] = []
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, _ZERO, weight, scale, zero, None, 1.0, 0, torch.float32, "none", nothing, ""
    )
    return product


def _int8_weight_only(x: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
    """Return (M, O) of x (M, I): by torch's kernel for few rows; for many the weights are turned back, some at a time."""
    if x.device.type != "cpu":  # where a launch costs more than what a cache saves
        return (x @ levels.to(x.dtype).t()).mul_(scale)
    if len(x) <= _FEW:
        product: Tensor = torch.ops.aten._weight_int8pack_mm(x.contiguous(), levels, scale)
        return product
    made = x.new_empty(len(x), len(levels))
    for rows in _chunks(*levels.shape):
        made[:, rows] = x @ levels[rows].to(x.dtype).t()
    return made.mul_(scale)


def _packed_shape(x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], outputs))


def _int8_shape(rows: Tensor, packed: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return rows.new_empty((*rows.shape[:-1], scale.shape[0]), dtype=torch.float32)


def _int8_weight_only_shape(x: Tensor, levels: Tensor, scale: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], levels.shape[0])


for _key in ("CPU", "MkldnnCPU"):  # the packed weight's layout decides
    _LIBRARY.impl("packed", _packed, _key)
    _LIBRARY.impl("int8", _int8, _key)
_LIBRARY.impl("int8_weight_only", _int8_weight_only, "CompositeExplicitAutograd")
torch.library.register_fake("esdllm_models::packed", _packed_shape, lib=_LIBRARY)
torch.library.register_fake("esdllm_models::int8", _int8_shape, lib=_LIBRARY)
torch.library.register_fake("esdllm_models::int8_weight_only", _int8_weight_only_shape, lib=_LIBRARY)


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether `pack` gains there: a CPU that multiplies bfloat16."""
    return device.type == "cpu" and dtype == torch.bfloat16 and multiplies_bfloat16()


def has_onednn() -> bool:
    """Return whether torch brings oneDNN's 8-bit kernel."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")


@cache
def int8_is_exact() -> bool:
    """Return whether the CPU's 8-bit kernel adds the largest products up right; without VNNI instructions it may not."""
    levels = torch.full((16, 64), _LEVELS, dtype=torch.int8)
    if has_onednn():
        rows, weight = torch.full((1, 64), 255, dtype=torch.uint8), torch.ops.onednn.qlinear_prepack(levels, None)
        found, largest = _int8(rows, weight, torch.ones(16), torch.zeros(16, dtype=torch.int64)), 255 - _ZERO
    else:
        found, largest = torch._int_mm(torch.full((32, 64), _LEVELS, dtype=torch.int8), levels.t()), _LEVELS
    return bool((found == 64 * _LEVELS * largest).all())
