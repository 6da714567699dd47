"""bfloat16 weights in oneDNN's own layout.

To the compiler a product is an operator of its own, for inductor asks of oneDNN's kernels that weights be constants. Eager calls
go past it: an operator written in Python costs microseconds per call. So in this room's other kernels.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from esdllm import multiplies_bfloat16

__all__ = ["Packed", "packs"]

_ROWS = 16  # of an input, for which oneDNN lays a weight out; the layout serves any number

_LIBRARY = torch.library.Library("esdllm_models", "FRAGMENT")
_LIBRARY.define("packed(Tensor x, Tensor packed, Tensor? bias, int outputs) -> Tensor")


@attrs.frozen(eq=False)
class Packed:
    """A matrix in full, in bfloat16, in oneDNN's own layout: the same numbers as `Dense`, sooner, most so for few rows.

    But where x is no one piece and there is a bias: `Dense` then rounds before it adds the bias, this after.
    """

    packed: Tensor
    """(O, I)"""
    bias: Tensor | None
    """(O,)"""
    outputs: int
    """O"""

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None = None) -> Packed:
        """Return the layer of a bfloat16 weight (O, I) and a bias (O,); otherwise the layout would be made at each call."""
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS), bias, len(weight))

    def __call__(self, x: Tensor) -> Tensor:
        """Return x (..., I) times the matrix, and the bias."""
        multiply = torch.ops.esdllm_models.packed if torch.compiler.is_compiling() else _packed
        product: Tensor = multiply(x, self.packed, self.bias, self.outputs)
        return product


def packs(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether the layout gains there: a CPU that multiplies bfloat16."""
    return device.type == "cpu" and dtype == torch.bfloat16 and multiplies_bfloat16()


def _packed(x: Tensor, weight: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


def _packed_shape(x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], outputs))


for _key in ("CPU", "MkldnnCPU"):  # the packed weight's layout decides
    _LIBRARY.impl("packed", _packed, _key)
torch.library.register_fake("esdllm_models::packed", _packed_shape, lib=_LIBRARY)
