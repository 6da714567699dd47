"""Linear layers whose weights are held in fewer bits.

int8              weights in 8 bits by output feature; each row of the input in 8 bits too, so that whole numbers are multiplied
int8-weight-only  the same weights; the input stays as it is
int4-weight-only  weights in 4 bits, by output feature and 32 input features; the input stays as it is

Rounded to the nearest; steps by the largest magnitude (8 bits) or by the least and the largest value (4 bits); no calibration.
Every row of an input is computed by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from esdllm_models.arithmetic import (
    GROUP,
    has_onednn,
    in_bytes,
    int8,
    int8_is_exact,
    pack_eight,
    pack_four,
    packs,
    whole_numbers,
)
from esdllm_models.linear import Dense, Linear, Packed

__all__ = ["QUANTIZERS", "Int4WeightOnly", "Int8", "Int8Matmul", "Int8WeightOnly", "Quantizer", "quantizer"]


@attrs.frozen(eq=False)
class Int8:
    """8-bit weights and inputs on the CPU, by oneDNN's kernel."""

    packed: Tensor
    """(O, I) int8 in the kernel's own layout"""
    scale: Tensor
    """(O,) float32"""
    zero: Tensor
    """(O,) int64, all 0"""
    bias: Tensor | None
    """(O,) float32"""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Int8:
        """Return the layer of a weight (O, I) and a bias (O,)."""
        levels, scale = pack_eight(weight)
        packed = torch.ops.onednn.qlinear_prepack(levels, None)
        return cls(packed, scale, torch.zeros(scale.shape, dtype=torch.int64), None if bias is None else bias.float())

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., O) of x (..., I)."""
        rows, step = in_bytes(x)
        return _scaled(int8(rows, self.packed, self.scale, self.zero), step, self.bias).to(x.dtype)


@attrs.frozen(eq=False)
class Int8Matmul:
    """8-bit weights and inputs by `torch._int_mm`: on CUDA, and on a CPU for which torch brings no oneDNN."""

    levels: Tensor
    """(O', I') int8, O and I filled up to multiples of 8, as CUDA's kernel asks for"""
    scale: Tensor
    """(O,) float32"""
    bias: Tensor | None
    """(O,) float32"""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Int8Matmul:
        """Return the layer of a weight (O, I) and a bias (O,)."""
        levels, scale = pack_eight(weight)
        outputs, inputs = weight.shape
        return cls(F.pad(levels, (0, -inputs % 8, 0, -outputs % 8)), scale, None if bias is None else bias.float())

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., O) of x (..., I); rows are filled up to a multiple of 32."""
        levels, step = whole_numbers(x)
        rows = levels.to(torch.int8).reshape(-1, x.shape[-1])
        filled = F.pad(rows, (0, self.levels.shape[1] - rows.shape[1], 0, -len(rows) % 32))
        product = torch._int_mm(filled, self.levels.t())[: len(rows), : len(self.scale)]
        return _scaled((product * self.scale).reshape(*x.shape[:-1], -1), step, self.bias).to(x.dtype)


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


@attrs.frozen
class Quantizer:
    """A way to hold weights."""

    make: Callable[[Tensor, Tensor | None], Linear]
    """the linear layer of a weight (O, I) and a bias (O,) or None"""
    problems: Callable[[torch.device, torch.dtype], list[str]]
    """why it cannot serve there; empty if it can"""
    bytes: Callable[[int, int, int], int]
    """what a weight of O x I takes without its bias, from O, I and the size of a value of the model's dtype"""
    hold: Callable[[Tensor], tuple[Tensor, ...]]
    """the tensors that hold a weight (O, I) of many that are held in one: of experts"""
    layer: Callable[..., Linear]
    """the linear layer without a bias, of O and such tensors"""
    part: Callable[[int, int, int], int]
    """what they take, as `bytes` tells it"""
    group: int = 1
    """what I must divide by"""


def quantizer(name: str | None) -> Quantizer:
    """Return the quantizer of a name; for None, the one that leaves weights as they are."""
    return QUANTIZERS[name] if name else _WHOLE


def _scaled(product: Tensor, step: Tensor, bias: Tensor | None) -> Tensor:
    return product * step if bias is None else torch.addcmul(bias, product, step)


def _whole(weight: Tensor, bias: Tensor | None) -> Linear:
    return Packed.of(weight, bias) if packs(weight.device, weight.dtype) else Dense(weight, bias)


def _int8(weight: Tensor, bias: Tensor | None) -> Linear:
    packs = weight.device.type == "cpu" and has_onednn()
    return Int8.of(weight, bias) if packs else Int8Matmul.of(weight, bias)


def _int8_problems(device: torch.device, dtype: torch.dtype) -> list[str]:
    if device.type == "cpu" and not int8_is_exact():
        return [
            "this processor's 8-bit products overflow (it has no VNNI instructions); int8-weight-only does without them"
        ]
    return _lacks_kernels(("cpu", "cuda"), device)


def _int4_problems(device: torch.device, dtype: torch.dtype) -> list[str]:
    found = _lacks_kernels(("cpu",), device)
    if dtype != torch.bfloat16:
        found.append(
            f"its kernel computes in bfloat16, not in {str(dtype).removeprefix('torch.')}; pass dtype bfloat16"
        )
    return found


def _lacks_kernels(types: tuple[str, ...], device: torch.device) -> list[str]:
    return [] if device.type in types else [f"its kernels are for {' and '.join(types)}, not for {device.type}"]


def _int8_bytes(outputs: int, inputs: int, size: int) -> int:
    return (outputs + -outputs % 8) * (inputs + -inputs % 8) + 4 * outputs


def _int8_weight_only_bytes(outputs: int, inputs: int, size: int) -> int:
    return outputs * (inputs + size)


def _int4_bytes(outputs: int, inputs: int, size: int) -> int:
    return (outputs + -outputs % 16) * (inputs // 2 + 4 * (inputs // GROUP))


def _whole_bytes(outputs: int, inputs: int, size: int) -> int:
    return outputs * inputs * size


def _levels(made: Int8Matmul | Int8WeightOnly) -> tuple[Tensor, ...]:
    return made.levels, made.scale


_WHOLE = Quantizer(
    _whole,
    lambda device, dtype: [],
    _whole_bytes,
    hold=lambda weight: (weight,),
    layer=lambda outputs, weight: Dense(weight),
    part=_whole_bytes,
)

QUANTIZERS: Mapping[str, Quantizer] = {
    "int8": Quantizer(
        _int8,
        _int8_problems,
        lambda outputs, inputs, size: outputs * (inputs + 4 + 8),
        hold=lambda weight: _levels(Int8Matmul.of(weight)),
        layer=lambda outputs, levels, scale: Int8Matmul(levels, scale, None),
        part=_int8_bytes,
    ),
    "int8-weight-only": Quantizer(
        Int8WeightOnly.of,
        lambda device, dtype: _lacks_kernels(("cpu", "cuda"), device),
        _int8_weight_only_bytes,
        hold=lambda weight: _levels(Int8WeightOnly.of(weight)),
        layer=lambda outputs, levels, scale: Int8WeightOnly(levels, scale, None),
        part=_int8_weight_only_bytes,
    ),
    "int4-weight-only": Quantizer(
        Int4WeightOnly.of,
        _int4_problems,
        _int4_bytes,
        hold=lambda weight: pack_four(weight),
        layer=lambda outputs, packed, ranges: Int4WeightOnly(packed, ranges, outputs, None),
        part=_int4_bytes,
        group=GROUP,
    ),
}
"""By the name that `quantize` takes."""
