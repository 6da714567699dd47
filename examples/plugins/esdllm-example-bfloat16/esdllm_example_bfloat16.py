"""A cache store that holds everything in bfloat16 while the model computes in float32."""

import attrs
import torch
from torch import Tensor

from esdllm import CacheShape, CacheWrite, KeyValue, Memory, Phase, Site, hookimpl


@attrs.frozen
class Bfloat16Store:
    """In half of float32's memory, lossy: each number is rounded to 8 significant bits."""

    @property
    def persistent(self) -> bool:
        """What is written stays."""
        return True

    def problems(self, shape: CacheShape) -> list[str]:
        """Return why it cannot serve: a model that computes in 16 bits gains nothing."""
        if shape.dtype is torch.float32:
            return []
        return [f"it holds bfloat16, which is no less than the model's {shape.dtype}; use cache = 'dense'"]

    def phase(self, step_in_block: int) -> Phase:
        """Attention reads everything, always."""
        return Phase.ALL

    def memory(self, shape: CacheShape) -> Memory:
        """Return what it takes: 2 bytes a number, and one layer's keys and values as attention reads them."""
        places = shape.rows * shape.length
        layer = 2 * places * shape.n_kv_heads * shape.head_dim  # numbers of keys and values
        held = shape.n_layers * layer + len(shape.remembered) * places * shape.features
        return Memory(held * torch.bfloat16.itemsize + layer * shape.dtype.itemsize)

    def allocate(self, shape: CacheShape) -> "Bfloat16Cache":
        """Return an empty cache."""
        return Bfloat16Cache(shape)


class Bfloat16Cache:
    """Keys and values (R, L, G, D) for each layer, and a tensor (R, L, F) for each remembered layer."""

    def __init__(self, shape: CacheShape) -> None:
        def empty(*size: int) -> Tensor:
            return torch.zeros(shape.rows, shape.length, *size, dtype=torch.bfloat16, device=shape.device)

        heads = (shape.n_kv_heads, shape.head_dim)
        self.keys = [empty(*heads) for _ in range(shape.n_layers)]
        self.values = [empty(*heads) for _ in range(shape.n_layers)]
        self.remembered = {layer: empty(shape.features) for layer in shape.remembered}
        self.dtype = shape.dtype

    def reset(self) -> None:
        """Zero everything."""
        for held in (*self.keys, *self.values, *self.remembered.values()):
            held.zero_()

    def update(self, write: CacheWrite) -> KeyValue:
        """Write the positions alive; return the whole layer."""
        keys, values = self.keys[write.layer], self.values[write.layer]
        _put(keys, write.positions, write.keys)
        _put(values, write.positions, write.values)
        return KeyValue(keys.to(self.dtype), values.to(self.dtype), write.bias, write.padding)

    def recall(self, layer: int, site: Site, positions: Tensor) -> Tensor:
        """Return (R, N, F): the cached key or value, or the remembered tensor."""
        held = {"key": self.keys, "value": self.values}.get(site, self.remembered)[layer].flatten(2)
        index = positions.unsqueeze(-1).expand(-1, -1, held.shape[2])
        return held.gather(1, index).to(self.dtype)

    def remember(self, layer: int, positions: Tensor, x: Tensor) -> None:
        """Write x (R, N, F) in place."""
        _put(self.remembered[layer], positions, x)


def _put(held: Tensor, positions: Tensor, x: Tensor) -> None:
    """Write x (R, N, ...) at positions (R, N) of held (R, L, ...)."""
    index = positions.view(*positions.shape, *(1,) * (x.dim() - 2)).expand_as(x)
    held.scatter_(1, index, x.to(held.dtype))


@hookimpl
def esdllm_cache_stores() -> dict[str, type[Bfloat16Store]]:
    """Offer the store as `cache = "bfloat16"`."""
    return {"bfloat16": Bfloat16Store}
