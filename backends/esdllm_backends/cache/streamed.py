"""A cache whose layers are mostly elsewhere, and pass in turn through two buffers near the compute.

    layer l computes in one buffer | layer l + 1 comes into the other | of layer l, what changed goes back

Where what goes back is a layer's first write since the reset, it goes back whole, so that nothing older shows. A layer that
was not written since then is not fetched but zeroed. Every other layer is fetched whole at every step, even where the step
writes as many positions as there are: a window may name one position twice, so that shapes do not tell that all are written.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple, Protocol

import attrs
import torch
from torch import Tensor

from esdllm import CacheShape, CacheWrite, EsdllmError, KeyValue, Site
from esdllm_backends.cache.places import Places


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
        copied = 2 * nbytes(attrs.evolve(self.shape, remembered=()), [0]) if self.shape.slotted else 0
        return stay + 2 * nbytes(self.shape, self.streamed) + copied + self.shape.rows * torch.int64.itemsize

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
        self._shape, self._near, self._places = tiers.shape, _Near(tiers, transfers), Places.whole(tiers.shape)
        self._row_starts = self._places.starts(tiers.shape.device)

    def slots(self, rows: slice | Tensor, length: int) -> StreamedCache:
        """Return a cache over some rows and their first columns; of each layer all rows come near all the same."""
        found = copy(self)
        index = (
            torch.arange(*rows.indices(self._shape.rows), device=self._shape.device)
            if isinstance(rows, slice)
            else rows
        )
        found._places = Places(len(index), length, self._shape.length, index)
        return found

    def reset(self) -> None:
        """Forget everything. The far side keeps its numbers, but is written before it is next read."""
        if self._places.together:
            self._near.reset()
            return
        index = self._places.all_lines(self._shape.device)
        for tensor in self._near.written():
            near = self._near.ready(tensor)
            self._near.write(tensor, index, near.new_zeros(len(index), near.shape[1]))

    def close(self) -> None:
        """Free all; may be called twice."""
        self._near.close()

    def update(self, write: CacheWrite) -> KeyValue:
        """Write in place; return the layer's whole cache, to be read before the next layer comes."""
        index = self._lines(write.positions)
        keys = self._near.write(LayerTensor(write.layer, "keys"), index, write.keys.flatten(0, 1).flatten(1))
        values = self._near.write(LayerTensor(write.layer, "values"), index, write.values.flatten(0, 1).flatten(1))
        return KeyValue(self._by_position(keys), self._by_position(values), write.bias, write.padding)

    def recall(self, layer: int, site: Site, positions: Tensor) -> Tensor:
        """Return (R, N, F): the remembered tensor, or the cached key or value itself."""
        name = {"key": "keys", "value": "values"}.get(site, "remembered")
        near = self._near.ready(LayerTensor(layer, name))
        return near.index_select(0, self._lines(positions)).view(*positions.shape, -1)

    def remember(self, layer: int, positions: Tensor, x: Tensor) -> None:
        """Write in place."""
        self._near.write(LayerTensor(layer, "remembered"), self._lines(positions), x.flatten(0, 1))

    def _lines(self, positions: Tensor) -> Tensor:
        """Return (R N,), the lines of positions (R, N) in a tensor."""
        return (positions + self._row_starts).flatten() if self._places.together else self._places.lines(positions)

    def _by_position(self, near: Tensor) -> Tensor:
        """Return a tensor as (R, L, G, D), without a copy if it is of all rows."""
        if not self._places.together:
            near = near.index_select(0, self._places.all_lines(near.device))
        return near.view(self._places.count, self._places.length, self._shape.n_kv_heads, self._shape.head_dim)


class _Near:
    """What of a cache is near the compute now: the layers that stay, and two that pass."""

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

    def reset(self) -> None:
        """Forget everything."""
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

    def written(self) -> list[LayerTensor]:
        """Return the tensors that may hold anything but zeros, layer by layer."""
        stay = {LayerTensor(layer, name) for layer, tensors in self._resident.items() for name in tensors}
        return sorted(stay | (self._parts.keys() - self._zero))

    def write(self, tensor: LayerTensor, index: Tensor, x: Tensor) -> Tensor:
        """Write x (M, W) at the lines `index` (M,) of a tensor, here and on the far side; return the tensor, all rows' lines."""
        near = self.ready(tensor)
        near.index_copy_(0, index, x.to(near.dtype))
        if tensor in self._parts:
            whole = tensor in self._zero or index.shape[0] >= near.shape[0]
            self._transfers.write_back(tensor, near, None if whole else index)
            self._zero.discard(tensor)
        return near

    def ready(self, tensor: LayerTensor) -> Tensor:
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

    def _check_open(self) -> None:
        if self._closed:
            raise EsdllmError("this cache was closed; allocate another, or let Engine.generate do so")


def _buffer(shape: CacheShape, layers: Sequence[int]) -> dict[str, Tensor]:
    rows = shape.rows * shape.length
    return {
        name: torch.zeros(rows, width, dtype=shape.dtype, device=shape.device)
        for name, width in widths(shape, layers).items()
    }
