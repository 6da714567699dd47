"""One linear layer of many experts, their weights one above the other: products in which each row has an expert of its own.

`grouped` takes rows that are sorted by expert and multiplies each with its own expert's weight: as much arithmetic as one
expert per row. `every` multiplies all rows with all experts. The shapes that come out follow from those that go in, for both.

To the compiler, and on the device meta, they are operators of their own; eager calls go past them.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from esdllm_models.linear.kernels import kernel

__all__ = ["Stacked"]

_LIBRARY = torch.library.Library("esdllm_models", "FRAGMENT")
_LIBRARY.define("grouped(Tensor rows, Tensor ends, Tensor[] weights, str kind, int outputs) -> Tensor")
_LIBRARY.define("every(Tensor rows, Tensor[] weights, str kind, int outputs) -> Tensor")


@attrs.frozen(eq=False)
class Stacked:
    """The same layer of E experts, I -> O."""

    kind: str
    """how the weights are held, by the name that `quantize` takes; empty for in full"""
    weights: tuple[Tensor, ...]
    """what holds them, each (E, ...)"""
    outputs: int
    """O"""

    @classmethod
    def of(cls, weight: Tensor, quantize: str | None = None) -> Stacked:
        """Return the layer of a weight (E, O, I), quantised expert by expert."""
        if not quantize:
            return cls("", (weight,), weight.shape[1])
        held: tuple[Tensor, ...] = ()
        for number, own in enumerate(weight):
            parts = kernel(quantize).hold(own)
            held = held or tuple(part.new_empty((len(weight), *part.shape)) for part in parts)
            for whole, part in zip(held, parts, strict=True):
                whole[number] = part
        return cls(quantize, held, weight.shape[1])

    @property
    def groups(self) -> bool:
        """Whether `grouped` serves: everywhere but on a GPU, and there where torch has a kernel for it."""
        first = self.weights[0]
        if first.device.type != "cuda":
            return True
        newest = torch.cuda.get_device_capability(first.device) >= (9, 0) and hasattr(torch, "_grouped_mm")
        return (
            not self.kind and first.dtype == torch.bfloat16 and newest and first.shape[1] % 8 == first.shape[2] % 8 == 0
        )

    def grouped(self, rows: Tensor, ends: Tensor) -> Tensor:
        """Return (M, O) of rows (M, I) sorted by expert; ends (E,) int64 says where each expert's rows end."""
        if rows.is_cuda:
            return torch._grouped_mm(rows, self.weights[0].transpose(1, 2), offs=ends.int())
        if torch.compiler.is_compiling() or rows.is_meta:
            product: Tensor = torch.ops.esdllm_models.grouped(rows, ends, self.weights, self.kind, self.outputs)
            return product
        return _grouped(rows, ends, self.weights, self.kind, self.outputs)

    def every(self, rows: Tensor) -> Tensor:
        """Return (E, N, O) of rows (N, I), the same for all experts, or (E, N, I), each expert's own."""
        if not self.kind:
            return rows @ self.weights[0].transpose(1, 2)
        if torch.compiler.is_compiling() or rows.is_meta:
            product: Tensor = torch.ops.esdllm_models.every(rows, self.weights, self.kind, self.outputs)
            return product
        return _every(rows, self.weights, self.kind, self.outputs)


def _grouped(rows: Tensor, ends: Tensor, weights: Sequence[Tensor], kind: str, outputs: int) -> Tensor:
    made, layer, first = rows.new_empty(len(rows), outputs), kernel(kind).layer, 0
    for number, stop in enumerate(ends.tolist()):  # on the CPU, where reading them waits for nothing
        if first < stop:
            made[first:stop] = layer(outputs, *(weight[number] for weight in weights))(rows[first:stop])
        first = stop
    return made


def _every(rows: Tensor, weights: Sequence[Tensor], kind: str, outputs: int) -> Tensor:
    layer, experts = kernel(kind).layer, len(weights[0])
    each = rows.expand(experts, *rows.shape[-2:])
    parts = (layer(outputs, *(weight[number] for weight in weights))(each[number]) for number in range(experts))
    return torch.stack(list(parts))


def _grouped_shape(rows: Tensor, ends: Tensor, weights: Sequence[Tensor], kind: str, outputs: int) -> Tensor:
    return rows.new_empty(rows.shape[0], outputs)


def _every_shape(rows: Tensor, weights: Sequence[Tensor], kind: str, outputs: int) -> Tensor:
    return rows.new_empty(weights[0].shape[0], rows.shape[-2], outputs)


_LIBRARY.impl("grouped", _grouped, "CPU")
_LIBRARY.impl("every", _every, "CompositeExplicitAutograd")
torch.library.register_fake("esdllm_models::grouped", _grouped_shape, lib=_LIBRARY)
torch.library.register_fake("esdllm_models::every", _every_shape, lib=_LIBRARY)
