"""The kernels of linear layers by name: how weights are held, what is multiplied, what that needs and how it rounds.

Weights in full, by the name that `compute` takes:

plain   as torch multiplies them, in the weights' dtype
packed  bfloat16 in oneDNN's own layout, for a CPU that multiplies bfloat16; the same numbers as plain
pieces  weights as they are, multiplied in float32, some output features at a time
fp16    weights in float16 in FBGEMM's layout, multiplied in float32; a bfloat16 weight loses nothing from 2^-14 to 65504; a
        matrix with a weight beyond is multiplied in pieces

Which one is taken where none is named, `choosing` says; on each of several devices it is packed where that serves, and else
plain. Under pieces and fp16 the hidden states are float32.

Weights in fewer bits, by the name that `quantize` takes:

int8              weights in 8 bits by output feature; each row of the input in 8 bits too (in 7 on a CPU without VNNI), so that
                  whole numbers are multiplied
int8-weight-only  the same weights; the input stays as it is
int4-weight-only  weights in 4 bits, by output feature and 32 input features; the input stays as it is

Rounded to the nearest; steps by the largest magnitude (8 bits) or by the least and the largest value (4 bits); no calibration.
Every row of an input is computed by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
import torch
from torch import Tensor

from esdllm_models.linear.fbgemm import Float16, Int8Fbgemm, fits_float16, float16_bytes, has_fbgemm
from esdllm_models.linear.int8 import Int8, Int8Matmul, has_onednn, int8_is_exact, most_of_inputs
from esdllm_models.linear.layers import Dense, Linear
from esdllm_models.linear.packed import Packed, packs
from esdllm_models.linear.pieces import Pieces
from esdllm_models.linear.rounding import GROUP, pack_four
from esdllm_models.linear.weight_only import Int4WeightOnly, Int8WeightOnly

__all__ = ["COMPUTES", "QUANTIZERS", "Kernel", "kernel"]

_Reasons = Callable[[torch.device, torch.dtype], list[str]]


@attrs.frozen
class Kernel:
    """A way to hold weights and to multiply by them."""

    make: Callable[[Tensor, Tensor | None], Linear]
    """the linear layer of a weight (O, I) and a bias (O,) or None"""
    problems: _Reasons
    """why it cannot serve on a device with weights of a dtype; empty if it can"""
    bytes: Callable[[int, int, int], int]
    """what a weight of O x I takes without its bias, from O, I and the size of a value of the weights' dtype"""
    hold: Callable[[Tensor], tuple[Tensor, ...]]
    """the tensors that hold a weight (O, I) of many that are held in one: of experts"""
    layer: Callable[..., Linear]
    """the linear layer without a bias, of O and such tensors"""
    part: Callable[[int, int, int], int]
    """what they take, as `bytes` tells it"""
    group: int = 1
    """what I must divide by"""
    widens: bool = False
    """whether inputs and outputs are float32, whatever the weights are"""
    keeps: Callable[[torch.device, torch.dtype], bool] = lambda device, dtype: False
    """whether it computes with the very weight that it is made of"""
    rounding: Callable[[torch.dtype], float] = lambda dtype: torch.finfo(dtype).eps
    """how far apart two numbers near 1 are that it tells apart, in weights of a dtype and in what it multiplies them by"""

    def hidden(self, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of hidden states where weights are of a dtype."""
        return torch.float32 if self.widens else dtype


def kernel(name: str | None) -> Kernel:
    """Return the kernel of a name of `compute` or `quantize`; for None, packed where that serves, and else plain."""
    return _KERNELS[name] if name else _WHOLE


def _whole(weight: Tensor, bias: Tensor | None) -> Linear:
    return Packed.of(weight, bias) if packs(weight.device, weight.dtype) else Dense(weight, bias)


def _int8(weight: Tensor, bias: Tensor | None) -> Linear:
    """Return the layer by the kernel that is fastest: on a CPU oneDNN's where 8 bits add up right, and else FBGEMM's."""
    if weight.device.type != "cpu":
        return Int8Matmul.of(weight, bias)
    if has_fbgemm() and not (has_onednn() and int8_is_exact()):
        return Int8Fbgemm.of(weight, bias)
    return Int8.of(weight, bias) if has_onednn() else Int8Matmul.of(weight, bias)


def _float16(weight: Tensor, bias: Tensor | None) -> Linear:
    """Return the layer in float16, or where a weight is beyond that, in pieces, which take as much and round no more."""
    return Float16.of(weight, bias) if fits_float16(weight) else Pieces(weight, bias)


def _packed_problems(device: torch.device, dtype: torch.dtype) -> list[str]:
    if packs(device, dtype):
        return []
    return ["it needs a CPU with instructions that multiply bfloat16, and dtype bfloat16"]


def _fp16_problems(device: torch.device, dtype: torch.dtype) -> list[str]:
    found = _lacks_kernels(("cpu",), device)
    return found if has_fbgemm() else [*found, "this torch comes without FBGEMM, which is for x86"]


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


def _in_full(make: Callable[[Tensor, Tensor | None], Linear], problems: _Reasons) -> Kernel:
    return Kernel(
        make,
        problems,
        _whole_bytes,
        hold=lambda weight: (weight,),
        layer=lambda outputs, weight: Dense(weight),
        part=_whole_bytes,
        keeps=lambda device, dtype: True,
    )


_WHOLE = attrs.evolve(_in_full(_whole, lambda device, dtype: []), keeps=lambda device, dtype: not packs(device, dtype))
_PIECES = attrs.evolve(
    _in_full(Pieces, lambda device, dtype: _lacks_kernels(("cpu",), device)),
    layer=lambda outputs, weight: Pieces(weight),
    widens=True,
    rounding=lambda dtype: torch.finfo(torch.float32).eps,
)

COMPUTES: Mapping[str, Kernel] = {
    "plain": _in_full(Dense, lambda device, dtype: []),
    "packed": attrs.evolve(_in_full(Packed.of, _packed_problems), keeps=lambda device, dtype: False),
    "pieces": _PIECES,
    "fp16": attrs.evolve(
        _PIECES,
        make=_float16,
        problems=_fp16_problems,
        bytes=lambda outputs, inputs, size: float16_bytes(outputs, inputs),
        keeps=lambda device, dtype: False,
        rounding=lambda dtype: torch.finfo(torch.float16 if dtype == torch.float32 else torch.float32).eps,
    ),
}
"""By the name that `compute` takes; experts are held as they are, and multiplied by `pieces` where hidden states are float32."""

QUANTIZERS: Mapping[str, Kernel] = {
    "int8": Kernel(
        _int8,
        lambda device, dtype: _lacks_kernels(("cpu", "cuda"), device),
        lambda outputs, inputs, size: outputs * (inputs + 4 + 8),
        hold=lambda weight: _levels(Int8Matmul.of(weight)),
        layer=lambda outputs, levels, scale: Int8Matmul(levels, scale, None, most_of_inputs(levels.device)),
        part=_int8_bytes,
    ),
    "int8-weight-only": Kernel(
        Int8WeightOnly.of,
        lambda device, dtype: _lacks_kernels(("cpu", "cuda"), device),
        _int8_weight_only_bytes,
        hold=lambda weight: _levels(Int8WeightOnly.of(weight)),
        layer=lambda outputs, levels, scale: Int8WeightOnly(levels, scale, None),
        part=_int8_weight_only_bytes,
    ),
    "int4-weight-only": Kernel(
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

_KERNELS = {**COMPUTES, **QUANTIZERS}
