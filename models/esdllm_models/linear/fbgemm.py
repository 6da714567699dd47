"""FBGEMM's kernels: 16-bit and 8-bit weights in its own layout, which torch hands out as an object and not as a tensor.

To the compiler a product is one operator, which finds its layer by a number; eager calls go past it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import attrs
import torch
from torch import Tensor

from esdllm_models.linear.int8 import most_of_inputs, scaled
from esdllm_models.linear.rounding import chunks, pack_eight, whole_numbers

__all__ = ["Float16", "Int8Fbgemm", "fits_float16", "float16_bytes", "has_fbgemm"]

_INPUTS, _OUTPUTS = 512, 32  # to multiples of which the 16-bit layout is filled up

_LIBRARY = torch.library.Library("esdllm_models", "FRAGMENT")
_LIBRARY.define("fbgemm(Tensor x, int number, int outputs) -> Tensor")

_numbers = count()
_layers: WeakValueDictionary[int, Float16 | Int8Fbgemm] = WeakValueDictionary()


@attrs.frozen(eq=False)
class Float16:
    """Weights in float16, inputs and sums in float32.

    Of a bfloat16 weight nothing is lost from 2^-14 to 65504 (float16 has three bits more); below, it is off by 2^-25 at most.
    """

    packed: Any
    """(O, I) in the kernel's own layout, with the bias"""
    outputs: int
    """O"""
    number: int = attrs.field(init=False, factory=_numbers.__next__)

    def __attrs_post_init__(self) -> None:
        _layers[self.number] = self

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Float16:
        """Return the layer of a weight (O, I) that `fits_float16` and a bias (O,)."""
        with _engine():
            packed = torch.ops.quantized.linear_prepack_fp16(weight.float(), None if bias is None else bias.float())
        return cls(packed, len(weight))

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., O) of x (..., I)."""
        return _multiplied(self, x)

    def multiplied(self, rows: Tensor) -> Tensor:
        """Return (M, O) float32 of rows (M, I), which are at least one."""
        product: Tensor = torch.ops.quantized.linear_dynamic_fp16(rows.float().contiguous(), self.packed)
        return product


@attrs.frozen(eq=False)
class Int8Fbgemm:
    """8-bit weights and inputs, rounded as in `Int8`; FBGEMM is faster than oneDNN where there is no VNNI."""

    packed: Any
    """(O, I) in the kernel's own layout"""
    bias: Tensor | None
    """(O,) float32"""
    outputs: int
    """O"""
    most: int
    """the largest whole number of an input"""
    number: int = attrs.field(init=False, factory=_numbers.__next__)

    def __attrs_post_init__(self) -> None:
        _layers[self.number] = self

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Int8Fbgemm:
        """Return the layer of a weight (O, I) and a bias (O,)."""
        levels, scale = pack_eight(weight)
        zero = torch.zeros(len(weight), dtype=torch.int64)
        with _engine():
            whole = torch._make_per_channel_quantized_tensor(levels, scale.double(), zero, 0)
            packed = torch.ops.quantized.linear_prepack(whole, None)
        return cls(packed, None if bias is None else bias.float(), len(weight), most_of_inputs(weight.device))

    def __call__(self, x: Tensor) -> Tensor:
        """Return (..., O) of x (..., I)."""
        return _multiplied(self, x)

    def multiplied(self, rows: Tensor) -> Tensor:
        """Return (M, O) float32 of rows (M, I), which are at least one.

        FBGEMM is given whole numbers and a step of 1, so that its own rounding of an input changes nothing.
        """
        levels, step = whole_numbers(rows, self.most)
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        return scaled(multiply(levels.contiguous(), 1.0, self.most + 1, self.packed), step, self.bias)


def has_fbgemm() -> bool:
    """Return whether torch brings FBGEMM's kernels: on x86."""
    return "fbgemm" in torch.backends.quantized.supported_engines and hasattr(
        torch, "_make_per_channel_quantized_tensor"
    )


def fits_float16(weight: Tensor) -> bool:
    """Return whether all of a weight (O, I) is finite and within float16's range."""
    largest = float(torch.stack([weight[rows].abs().amax() for rows in chunks(*weight.shape)]).amax())
    return largest <= torch.finfo(torch.float16).max


def float16_bytes(outputs: int, inputs: int) -> int:
    """Return what a weight of O x I takes in `Float16`'s layout: two bytes each, filled up to multiples of 32 and 512."""
    return 2 * (outputs + -outputs % _OUTPUTS) * (inputs + -inputs % _INPUTS)


@contextmanager
def _engine() -> Iterator[None]:
    """Make FBGEMM what torch packs weights for; the engine x86 would give some of them to oneDNN."""
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "fbgemm"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch moves its quantised tensors elsewhere
            yield
    finally:
        torch.backends.quantized.engine = before


def _multiplied(layer: Float16 | Int8Fbgemm, x: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        product: Tensor = torch.ops.esdllm_models.fbgemm(x, layer.number, layer.outputs)
        return product
    return _fbgemm(x, layer.number, layer.outputs)


def _fbgemm(x: Tensor, number: int, outputs: int) -> Tensor:
    shape = (*x.shape[:-1], outputs)
    if not x.numel():
        return x.new_empty(shape)
    return _layers[number].multiplied(x.reshape(-1, x.shape[-1])).to(x.dtype).reshape(shape)


def _fbgemm_shape(x: Tensor, number: int, outputs: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], outputs))


_LIBRARY.impl("fbgemm", _fbgemm, "CPU")
torch.library.register_fake("esdllm_models::fbgemm", _fbgemm_shape, lib=_LIBRARY)
