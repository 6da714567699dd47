"""A cache whose layers are mostly elsewhere, and pass in turn through two buffers near the compute.

    layer l computes in one buffer | layer l + 1 comes into the other | of layer l, what changed goes back

Where what goes back is a layer's first write since the reset, it goes back whole, so that nothing older shows. A layer that
was not written since then is not fetched but zeroed. Every other layer is fetched whole at every step, even where the step
writes as many positions as there are: a window may name one position twice, so that shapes do not tell that all are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import attrs
import torch
from torch import Tensor

from esdllm import CacheShape, CacheWrite, EsdllmError, KeyValue, Site


class LayerTensor(NamedTuple):
    """One tensor of one layer, (R L, W) in both places, the rows one after the other."""

    layer: int
    """number of the layer"""
    name: str
    """keys, values or remembered"""


class Transfers(Protocol):
    """Moves tensors between the far side and the buffers. What is begun happens in the order in which it was begun."""

    def fetch(self, tensor: LayerTensor, near: Tensor) -> None:
        """Begin to copy a tensor into `near` (R L, W); after the computing that was begun before, which may read `near`."""
        ...

    def clear(self, tensor: LayerTensor, near: Tensor) -> None:
        """Begin to zero `near`, likewise."""
        ...

    def write_back(self, tensor: LayerTensor, near: Tensor, index: Tensor | None) -> None:
        """Begin to copy rows `index` (M,) int64 of `near` to the tensor; None copies all, until when `near` must not change."""
        ...

    def wait(self, tensor: LayerTensor) -> None:
        """Hold the computing that follows until all that was begun for `tensor` is done."""
        ...

    def close(self) -> None:
        """Let go of the far side. May be called twice."""
        ...


def widths(shape: CacheShape, layers: Sequence[int]) -> dict[str, int]:
    """Return the numbers a position has in each tensor, of the tensors that any of `layers` has."""
    heads = shape.n_kv_heads * shape.head_dim
    found = {"keys": heads, "values": heads}
    if set(layers) & set(shape.remembered):
        found["remembered"] = shape.features
    return found


def nbytes(shape: CacheShape, layers: Sequence[int]) -> int:
    """Return the bytes of one layer that has all the tensors that any of `layers` has; 0 if there are no layers."""
    each = shape.rows * shape.length * shape.dtype.itemsize
    return each * sum(widths(shape, layers).values()) if layers else 0


@attrs.frozen
class Tiers:
    """Which layers stay near the compute, and what either side takes."""

    shape: CacheShape
    resident: tuple[int, ...]
    """the layers that stay"""

    @classmethod
    def within(cls, shape: CacheShape, bound: int | None) -> Tiers:
        """Return the most resident layers, evenly spread, that fit `bound` bytes; the least if it is None, or if none fits."""
        n = shape.n_layers
        counts = [n, *range(n - 3, -1, -1)]  # one or two layers need no more than their buffers, and so may stay
        found = [cls(shape, tuple(i for i in range(n) if (i + 1) * k // n > i * k // n)) for k in counts]
        fitting = [tiers for tiers in found if bound is not None and tiers.near <= bound]
        return fitting[0] if fitting else min(found, key=lambda tiers: tiers.near)

    @property
    def streamed(self) -> tuple[int, ...]:
        """The layers that pass through the buffers."""
        return tuple(layer for layer in range(self.shape.n_layers) if layer not in self.resident)

    @property
    def near(self) -> int:
        """Bytes near the compute: resident layers, two buffers, the rows' starts."""
        stay = sum(nbytes(self.shape, [layer]) for layer in self.resident)
        return stay + 2 * nbytes(self.shape, self.streamed) + self.shape.rows * torch.int64.itemsize

    @property
    def far(self) -> int:
        """Bytes on the far side."""
        return sum(nbytes(self.shape, [layer]) for layer in self.streamed)

    def tensors(self) -> dict[LayerTensor, int]:
        """Return the tensors on the far side with their widths, layer by layer."""
        return {
            LayerTensor(layer, name): width
            for layer in self.streamed
            for name, width in widths(self.shape, [layer]).items()
        }


def problems(shape: CacheShape, option: str, bound: int | None) -> list[str]:
    """Return why layers cannot be streamed under a bound that `option` sets."""
    found = []
    if shape.compiled:
        found.append("it moves layers while a step runs, which a compiled step cannot; set compile = false")
    least = Tiers.within(shape, None).near
    if bound is not None and bound < least:
        found.append(
            f"{option} is {bound:,}, but the buffers of two layers take {least:,} bytes; allow that, or leave it out"
        )
    return found


class StreamedCache:
    """Keys, values and remembered tensors: of the resident layers near the compute, of the others behind `transfers`."""

    def __init__(self, tiers: Tiers, transfers: Transfers) -> None:
        shape = tiers.shape
        self._shape, self._transfers, self._closed = shape, transfers, False
        self._resident = {layer: _buffer(shape, [layer]) for layer in tiers.resident}
        self._buffers = [_buffer(shape, tiers.streamed) for _ in range(2)] if tiers.streamed else []
        self._holds: list[int | None] = [None, None]
        """the layer that each buffer holds, or that is coming into it"""
        self._following = dict(zip(tiers.streamed, tiers.streamed[1:] + tiers.streamed[:1], strict=True))
        self._parts = tiers.tensors()
        self._zero = set(self._parts)
        """tensors that nothing was written to since the reset"""
        self._row_starts = torch.arange(shape.rows, device=shape.device).unsqueeze(1) * shape.length

    def reset(self) -> None:
        """Forget everything. The far side keeps its numbers, but is written before it is next read."""
        self._check_open()
        for tensors in self._resident.values():
            for x in tensors.values():
                x.zero_()
        self._zero = set(self._parts)
        self._holds = [None, None]

    def close(self) -> None:
        """Free all; may be called twice."""
        self._closed = True
        self._transfers.close()  # first: what is under way still uses the buffers
        self._resident, self._buffers = {}, []

    def update(self, write: CacheWrite) -> KeyValue:
        """Write in place; return the layer's whole cache, to be read before the next layer comes."""
        index = self._flat(write.positions)
        keys = self._write(LayerTensor(write.layer, "keys"), index, write.keys)
        values = self._write(LayerTensor(write.layer, "values"), index, write.values)
        size = (self._shape.rows, self._shape.length, self._shape.n_kv_heads, self._shape.head_dim)
        return KeyValue(keys.view(size), values.view(size), write.bias, write.padding)

    def recall(self, layer: int, site: Site, positions: Tensor) -> Tensor:
        """Return (R, N, F): the remembered tensor, or the cached key or value itself."""
        name = {"key": "keys", "value": "values"}.get(site, "remembered")
        return self._ready(LayerTensor(layer, name)).index_select(0, self._flat(positions)).view(*positions.shape, -1)

    def remember(self, layer: int, positions: Tensor, x: Tensor) -> None:
        """Write in place."""
        self._write(LayerTensor(layer, "remembered"), self._flat(positions), x)

    def _write(self, tensor: LayerTensor, index: Tensor, x: Tensor) -> Tensor:
        """Write x (R, N, ...) at index (R N,) of a tensor, here and on the far side; return the tensor (R L, W)."""
        near = self._ready(tensor)
        near.index_copy_(0, index, x.flatten(0, 1).flatten(1).to(near.dtype))
        if tensor in self._parts:
            whole = tensor in self._zero or index.shape[0] >= near.shape[0]
            self._transfers.write_back(tensor, near, None if whole else index)
            self._zero.discard(tensor)
        return near

    def _ready(self, tensor: LayerTensor) -> Tensor:
        """Return a tensor near the compute, (R L, W), that computing may read and write from now on."""
        self._check_open()
        if tensor.layer in self._resident:
            return self._resident[tensor.layer][tensor.name]
        near = self._entered(tensor.layer)[tensor.name]
        self._transfers.wait(tensor)
        return near

    def _entered(self, layer: int) -> dict[str, Tensor]:
        """Return the buffer of a layer, the next layer on its way into the other one."""
        if layer not in self._holds:
            self._begin(layer, 0)
        here, following = self._holds.index(layer), self._following[layer]
        if following not in self._holds:
            self._begin(following, 1 - here)
        return self._buffers[here]

    def _begin(self, layer: int, buffer: int) -> None:
        self._holds[buffer] = layer
        for name in widths(self._shape, [layer]):
            tensor, near = LayerTensor(layer, name), self._buffers[buffer][name]
            move = self._transfers.clear if tensor in self._zero else self._transfers.fetch
            move(tensor, near)

    def _flat(self, positions: Tensor) -> Tensor:
        """Return (R N,), indices of positions (R, N) in a tensor."""
        return (positions + self._row_starts).flatten()

    def _check_open(self) -> None:
        if self._closed:
            raise EsdllmError("this cache was closed; allocate another, or let Engine.generate do so")


def _buffer(shape: CacheShape, layers: Sequence[int]) -> dict[str, Tensor]:
    rows = shape.rows * shape.length
    return {
        name: torch.zeros(rows, width, dtype=shape.dtype, device=shape.device)
        for name, width in widths(shape, layers).items()
    }
