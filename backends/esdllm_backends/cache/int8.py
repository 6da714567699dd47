"""Keys, values and remembered tensors in 8 bits, with one scale for every position and head."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from esdllm import CacheShape, CacheWrite, KeyValue, Phase, Site

_LARGEST = 127


@attrs.frozen
class Int8Store:
    """As dense, in a quarter of float32's or about half of bfloat16's memory; lossy: each number is off by up to scale / 2."""

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

    def allocate(self, shape: CacheShape) -> Int8Cache:
        """Return an empty cache."""
        return Int8Cache(shape)


class _Held:
    """A tensor (R, L, ..., D) held in int8, with a float32 scale (R, L, ..., 1): the largest of D numbers is 127 scales."""

    def __init__(self, shape: CacheShape, *size: int) -> None:
        places = (shape.rows, shape.length)
        self.numbers = torch.zeros(*places, *size, dtype=torch.int8, device=shape.device)
        self.scales = torch.zeros(*places, *size[:-1], 1, dtype=torch.float32, device=shape.device)
        self.dtype = shape.dtype

    def reset(self) -> None:
        self.numbers.zero_()
        self.scales.zero_()

    def write(self, index: Tensor, x: Tensor) -> None:
        """Write x (R, N, ..., D) at index (R N,)."""
        x = x.flatten(0, 1).float()
        scales = x.abs().amax(-1, keepdim=True) / _LARGEST
        numbers = (x / scales.clamp(min=torch.finfo(torch.float32).tiny)).round()
        self.numbers.flatten(0, 1).index_copy_(0, index, numbers.to(torch.int8))
        self.scales.flatten(0, 1).index_copy_(0, index, scales)

    def all(self) -> Tensor:
        """Return the whole tensor."""
        return (self.numbers * self.scales).to(self.dtype)

    def take(self, index: Tensor) -> Tensor:
        """Return (M, ..., D), the numbers at index (M,)."""
        numbers, scales = (x.flatten(0, 1).index_select(0, index) for x in (self.numbers, self.scales))
        return (numbers * scales).to(self.dtype)


class Int8Cache:
    """For each layer keys and values, for each remembered layer its tensor; one layer is unpacked at a time."""

    def __init__(self, shape: CacheShape) -> None:
        heads = (shape.n_kv_heads, shape.head_dim)
        self.keys = [_Held(shape, *heads) for _ in range(shape.n_layers)]
        self.values = [_Held(shape, *heads) for _ in range(shape.n_layers)]
        self.remembered = {layer: _Held(shape, shape.features) for layer in shape.remembered}
        self._row_starts = torch.arange(shape.rows, device=shape.device).unsqueeze(1) * shape.length

    def reset(self) -> None:
        """Zero everything."""
        for held in (*self.keys, *self.values, *self.remembered.values()):
            held.reset()

    def update(self, write: CacheWrite) -> KeyValue:
        """Write in place; return the layer's whole cache, unpacked."""
        keys, values = self.keys[write.layer], self.values[write.layer]
        index = self._flat(write.positions)
        keys.write(index, write.keys)
        values.write(index, write.values)
        return KeyValue(keys.all(), values.all(), write.bias)

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
