"""8-bit weights and inputs, by oneDNN and by `torch._int_mm`.

A weight is rounded to whole numbers from -127 to 127 with a step for each output feature, an input with a step for each of its
rows: to 8 bits, or 7 where the processor would not add 8 of them up right. The whole numbers' products and sums are exact. So a
row is equal in any batch.
"""

from __future__ import annotations

from functools import cache

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from esdllm_models.linear.rounding import LEVELS, chunks, pack_eight, whole_numbers

__all__ = ["SEVEN_BITS", "Int8", "Int8Matmul", "has_onednn", "int8_is_exact", "most_of_inputs", "scaled"]

SEVEN_BITS = 63
"""the largest whole number of an input in 7 bits: two of its bytes' products fit 16 bits, in which AVX2 adds them"""

_LIBRARY = torch.library.Library("esdllm_models", "FRAGMENT")
_LIBRARY.define("int8(Tensor rows, Tensor packed, Tensor scale, Tensor zero, int most) -> Tensor")


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
    most: int
    """the largest whole number of an input"""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Int8:
        """Return the layer of a weight (O, I) and a bias (O,)."""
        levels, scale = pack_eight(weight)
        packed = torch.ops.onednn.qlinear_prepack(levels, None)
        zero = torch.zeros(scale.shape, dtype=torch.int64)
        return cls(packed, scale, zero, None if bias is None else bias.float(), most_of_inputs(weight.device))

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., O) of x (..., I)."""
        levels, step = whole_numbers(x, self.most)
        rows = levels.add_(self.most + 1).to(torch.uint8)  # the kernel multiplies unsigned by signed bytes
        multiply = torch.ops.esdllm_models.int8 if torch.compiler.is_compiling() else _int8
        product = multiply(rows, self.packed, self.scale, self.zero, self.most)
        return scaled(product, step, self.bias).to(x.dtype)


@attrs.frozen(eq=False)
class Int8Matmul:
    """8-bit weights and inputs by `torch._int_mm`: on CUDA, on a CPU for which torch brings no oneDNN, and for experts.

    On a CPU whose products overflow, whole numbers are multiplied in float32 instead, some of the weights at a time: slower.
    """

    levels: Tensor
    """(O', I') int8, O and I filled up to multiples of 8, as CUDA's kernel asks for"""
    scale: Tensor
    """(O,) float32"""
    bias: Tensor | None
    """(O,) float32"""
    most: int
    """the largest whole number of an input"""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Int8Matmul:
        """Return the layer of a weight (O, I) and a bias (O,)."""
        levels, scale = pack_eight(weight)
        outputs, inputs = weight.shape
        levels = F.pad(levels, (0, -inputs % 8, 0, -outputs % 8))
        return cls(levels, scale, None if bias is None else bias.float(), most_of_inputs(weight.device))

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., O) of x (..., I); rows are filled up to a multiple of 32."""
        levels, step = whole_numbers(x, self.most)
        rows = levels.reshape(-1, x.shape[-1])
        filled = F.pad(rows, (0, self.levels.shape[1] - rows.shape[1], 0, -len(rows) % 32))
        if self.most == LEVELS:
            product = torch._int_mm(filled.to(torch.int8), self.levels.t())
        else:
            parts = [filled @ self.levels[part].float().t() for part in chunks(*self.levels.shape)]
            product = torch.cat(parts, dim=1)
        product = product[: len(rows), : len(self.scale)]
        return scaled((product * self.scale).reshape(*x.shape[:-1], len(self.scale)), step, self.bias).to(x.dtype)


def scaled(product: Tensor, step: Tensor, bias: Tensor | None) -> Tensor:
    """Return a product (..., O) times each row's step (..., 1), and the bias (O,)."""
    return product * step if bias is None else torch.addcmul(bias, product, step)


def most_of_inputs(device: torch.device) -> int:
    """Return the largest whole number of an input that a device's kernels add up right."""
    return LEVELS if device.type != "cpu" or int8_is_exact() else SEVEN_BITS


def has_onednn() -> bool:
    """Return whether torch brings oneDNN's 8-bit kernel."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.onednn, "qlinear_pointwise")


@cache
def int8_is_exact() -> bool:
    """Return whether the CPU's 8-bit kernels add the largest products up right; without VNNI instructions they may not."""
    levels, largest = torch.full((16, 64), LEVELS, dtype=torch.int8), torch.full((32, 64), LEVELS, dtype=torch.int8)
    found = [torch._int_mm(largest, levels.t())]
    if has_onednn():
        rows, weight = torch.full((1, 64), 255, dtype=torch.uint8), torch.ops.onednn.qlinear_prepack(levels, None)
        found.append(_int8(rows, weight, torch.ones(16), torch.zeros(16, dtype=torch.int64), LEVELS))
    return all(bool((one == 64 * LEVELS * LEVELS).all()) for one in found)


def _int8(rows: Tensor, weight: Tensor, scale: Tensor, zero: Tensor, most: int) -> Tensor:
    """Return (..., O) float32 of rows (..., I) uint8 whose 0 is `most + 1`: the product times the weights' scale (O,)."""
    nothing: list[float] = []
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        rows, 1.0, most + 1, weight, scale, zero, None, 1.0, 0, torch.float32, "none", nothing, ""
    )
    return product


def _int8_shape(rows: Tensor, packed: Tensor, scale: Tensor, zero: Tensor, most: int) -> Tensor:
    return rows.new_empty((*rows.shape[:-1], scale.shape[0]), dtype=torch.float32)


for _key in ("CPU", "MkldnnCPU"):  # the packed weight's layout decides
    _LIBRARY.impl("int8", _int8, _key)
torch.library.register_fake("esdllm_models::int8", _int8_shape, lib=_LIBRARY)
