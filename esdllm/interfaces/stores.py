"""Stores: the only components with state. Allocated once, written in place, reset between runs.

Shapes are those of `esdllm.views`."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from esdllm.planning.planners import StepPhases
from esdllm.views import CacheShape, CacheWrite, KeyValue, Memory, Site

__all__ = ["Cache", "CacheStore", "ClosingCache", "LendingCache", "OffsetCache", "SlottedCache"]


class Cache(Protocol):
    """The memory of a run. Allocated once, written in place.

    A step goes through the layers in ascending order and calls each layer's methods together; what `update` returned may
    be overwritten at the next layer.
    """

    def reset(self) -> None:
        """Forget everything."""
        ...

    def update(self, write: CacheWrite) -> KeyValue:
        """Write the positions' keys and values, and return all that attention reads."""
        ...

    def recall(self, layer: int, site: Site, positions: Tensor) -> Tensor:
        """Return (R, N, F), the tensor at `site` when each position last survived `layer`."""
        ...

    def remember(self, layer: int, positions: Tensor, x: Tensor) -> None:
        """Store x (R, N, F) as what the next comparison at a hidden or query site is made against."""
        ...


@runtime_checkable
class ClosingCache(Cache, Protocol):
    """A cache that holds more than memory, such as files or threads; it frees all of it when it is collected unclosed too."""

    def close(self) -> None:
        """Free what it holds. The engine calls this when it drops the cache, maybe more than once."""
        ...


@runtime_checkable
class LendingCache(Cache, Protocol):
    """A cache in whose memory caches of other shapes find room, for recorded steps go by addresses and are kept for many shapes.

    Of a cache and those that it lent, one is used at a time, and reset before.
    """

    def lend(self, shape: CacheShape) -> Cache | None:
        """Return a cache of this shape in this one's memory; None if that does not suffice, or holds something else."""
        ...


@runtime_checkable
class SlottedCache(Cache, Protocol):
    """A cache whose rows are slots: a step is made over some of them, while others are of another age, or empty."""

    def slots(self, rows: slice | Tensor, length: int) -> Cache:
        """Return a cache over some rows and the first `length` columns of each, in this one's memory.

        `rows` are neighbours, which are read where they are, or an index (n,) int64 of any, which are copied to be read; its
        numbers may change from step to step, and one that occurs twice stands for a row that nothing is read of. Resetting
        what is returned forgets those rows alone. A store that has such caches for some shapes only says so in `problems` of a
        shape that is `slotted`.
        """
        ...


@runtime_checkable
class OffsetCache(Cache, Protocol):
    """A cache that goes by where a row begins, such as one that holds neighbours in groups: padding must not move them.

    `update` is told that as `write.offsets`.
    """

    def recall_at(self, layer: int, site: Site, positions: Tensor, offsets: Tensor) -> Tensor:
        """Return what `recall` does, which is not called then.

        `offsets` (R,) int64 are each row's first column that is no padding.
        """
        ...


class CacheStore(StepPhases, Protocol):
    """Where keys, values and remembered tensors live, and which of them attention reads."""

    def problems(self, shape: CacheShape) -> list[str]:
        """Return why this store cannot serve; empty if it can."""
        ...

    def memory(self, shape: CacheShape) -> Memory:
        """Return what `allocate` would take at most. Allocates nothing, and answers for a shape that has problems too."""
        ...

    def allocate(self, shape: CacheShape) -> Cache:
        """Return an empty cache."""
        ...
