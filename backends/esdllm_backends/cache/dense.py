"""Keys and values of all positions, on the device."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from esdllm import CacheShape, CacheWrite, KeyValue, Phase, Site


@attrs.frozen
class DenseStore:
    """Keys, values and remembered tensors of every position, on the model's device."""

    @property
    def persistent(self) -> bool:
        """What is written stays."""
        return True

    def problems(self, shape: CacheShape) -> list[str]:
        """Return nothing: it serves everywhere."""
        return []

    def phase(self, step_in_block: int) -> Phase:
        """Attention reads everything."""
        return Phase.ALL

    def allocate(self, shape: CacheShape) -> DenseCache:
        """Return an empty cache."""
        return DenseCache(shape)


class DenseCache:
    """One (R, L, G, D) tensor for each layer's keys and values, one (R, L, F) for each remembered layer."""

    def __init__(self, shape: CacheShape) -> None:
        def empty(*size: int) -> Tensor:
            return torch.zeros(shape.rows, shape.length, *size, dtype=shape.dtype, device=shape.device)

        self.keys = [empty(shape.n_kv_heads, shape.head_dim) for _ in range(shape.n_layers)]
        self.values = [empty(shape.n_kv_heads, shape.head_dim) for _ in range(shape.n_layers)]
        self.remembered = {layer: empty(shape.features) for layer in shape.remembered}
        self._row_starts = torch.arange(shape.rows, device=shape.device).unsqueeze(1) * shape.length

    def reset(self) -> None:
        """Zero everything."""
        for x in (*self.keys, *self.values, *self.remembered.values()):
            x.zero_()

    def update(self, write: CacheWrite) -> KeyValue:
        """Write in place; return the whole cache."""
        keys, values = self.keys[write.layer], self.values[write.layer]
        index = self._flat(write.positions)
        _write(keys, index, write.keys)
        _write(values, index, write.values)
        return KeyValue(keys, values, write.bias)

    def recall(self, layer: int, site: Site, positions: Tensor) -> Tensor:
        """Return (R, N, F): the remembered tensor, or the cached key or value itself."""
        held = self.remembered if site in ("hidden", "query") else self.keys if site == "key" else self.values
        index = self._flat(positions)
        return held[layer].flatten(0, 1).index_select(0, index).view(*positions.shape, -1)

    def remember(self, layer: int, positions: Tensor, x: Tensor) -> None:
        """Write in place."""
        _write(self.remembered[layer], self._flat(positions), x)

    def _flat(self, positions: Tensor) -> Tensor:
        """Return (R N,), indices of positions (R, N) in a cache whose rows lie one after the other."""
        return (positions + self._row_starts).flatten()


def _write(held: Tensor, index: Tensor, x: Tensor) -> None:
    held.flatten(0, 1).index_copy_(0, index, x.flatten(0, 1).to(held.dtype))
