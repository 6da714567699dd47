"""No cache: for runs that compute every position at every step."""

from __future__ import annotations

import attrs
from torch import Tensor

from esdllm import CacheShape, CacheWrite, KeyValue, Memory, Phase, Site


@attrs.frozen
class NoStore:
    """Keeps nothing; attention reads what the step computed. For vanilla decoding."""

    @property
    def persistent(self) -> bool:
        """Nothing outlasts a layer."""
        return False

    def problems(self, shape: CacheShape) -> list[str]:
        """Return nothing: it serves everywhere."""
        return []

    def phase(self, step_in_block: int) -> Phase:
        """Attention reads everything."""
        return Phase.ALL

    def memory(self, shape: CacheShape) -> Memory:
        """Return nothing: it holds nothing."""
        return Memory(0)

    def allocate(self, shape: CacheShape) -> _Passing:
        """Return a cache that takes no memory."""
        return _Passing()


class _Passing:
    def reset(self) -> None:
        """There is nothing to forget."""

    def update(self, write: CacheWrite) -> KeyValue:
        bias = write.bias
        if bias is not None and bias.shape[1] > write.positions.shape[1]:  # a canvas whose suffix is pruned
            bias = bias.gather(1, write.positions)
        return KeyValue(write.keys, write.values, bias, write.padding)

    def slots(self, rows: slice | Tensor, length: int) -> _Passing:
        """Return itself: no row leaves anything behind."""
        return self

    def recall(self, layer: int, site: Site, positions: Tensor) -> Tensor:
        raise NotImplementedError("a step that skips is never planned without a cache")

    def remember(self, layer: int, positions: Tensor, x: Tensor) -> None:
        """Keep nothing."""
