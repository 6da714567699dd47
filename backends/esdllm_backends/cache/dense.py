"""Keys and values of all positions, on the device."""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from esdllm import Cache, CacheShape, CacheWrite, KeyValue, Memory, Phase, Site


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

    def memory(self, shape: CacheShape) -> Memory:
        """Return what it takes."""
        return Memory(DenseCache.nbytes(shape))

    def allocate(self, shape: CacheShape) -> Cache:
        """Return an empty cache."""
        return DenseCache(shape)


class Held:
    """A tensor (R, L, ...) held as it is."""

    def __init__(self, shape: CacheShape, *size: int) -> None:
        self.x = torch.zeros(shape.rows, shape.length, *size, dtype=shape.dtype, device=shape.device)

    @staticmethod
    def nbytes(shape: CacheShape, *size: int) -> int:
        """Return the bytes that it takes."""
        return shape.rows * shape.length * math.prod(size) * shape.dtype.itemsize

    def reset(self) -> None:
        """Zero everything."""
        self.x.zero_()

    def write(self, index: Tensor, x: Tensor) -> None:
        """Write x (R, N, ...) at index (R N,), of the rows one after the other."""
        self.x.flatten(0, 1).index_copy_(0, index, x.flatten(0, 1).to(self.x.dtype))

    def all(self) -> Tensor:
        """Return the whole tensor."""
        return self.x

    def take(self, index: Tensor) -> Tensor:
        """Return (M, ...) at index (M,)."""
        return self.x.flatten(0, 1).index_select(0, index)


class DenseCache:
    """Keys and values (R, L, G, D) for each layer, a tensor (R, L, F) for each remembered layer, held as `held` holds them."""

    def __init__(self, shape: CacheShape, held: type[Held] = Held) -> None:
        heads = (shape.n_kv_heads, shape.head_dim)
        self.keys = [held(shape, *heads) for _ in range(shape.n_layers)]
        self.values = [held(shape, *heads) for _ in range(shape.n_layers)]
        self.remembered = {layer: held(shape, shape.features) for layer in shape.remembered}
        self._row_starts = torch.arange(shape.rows, device=shape.device).unsqueeze(1) * shape.length

    @staticmethod
    def nbytes(shape: CacheShape, held: type[Held] = Held) -> int:
        """Return the bytes that it takes."""
        keys = held.nbytes(shape, shape.n_kv_heads, shape.head_dim)
        remembered = len(shape.remembered) * held.nbytes(shape, shape.features)
        return 2 * shape.n_layers * keys + remembered + shape.rows * torch.int64.itemsize

    def reset(self) -> None:
        """Zero everything."""
        for held in (*self.keys, *self.values, *self.remembered.values()):
            held.reset()

    def update(self, write: CacheWrite) -> KeyValue:
        """Write in place; return the layer's whole cache."""
        keys, values = self.keys[write.layer], self.values[write.layer]
        index = self._flat(write.positions)
        keys.write(index, write.keys)
        values.write(index, write.values)
        return KeyValue(keys.all(), values.all(), write.bias, write.padding)

    def recall(self, layer: int, site: Site, positions: Tensor) -> Tensor:
        """Return (R, N, F): the remembered tensor, or the cached key or value itself."""
        held = self.remembered if site in ("hidden", "query") else self.keys if site == "key" else self.values
        return held[layer].take(self._flat(positions)).view(*positions.shape, -1)

    def remember(self, layer: int, positions: Tensor, x: Tensor) -> None:
        """Write in place."""
        self.remembered[layer].write(self._flat(positions), x)

    def _flat(self, positions: Tensor) -> Tensor:
        """Return (R N,), indices of positions (R, N) in a cache whose rows lie one after the other."""
        return (positions + self._row_starts).flatten()
