"""Keys and values of all positions, on the device."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

import attrs
import torch
from torch import Tensor

from esdllm import Cache, CacheShape, CacheWrite, KeyValue, Memory, Phase, Site, runs_triton


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
    """Lines of W numbers, held as they are."""

    def __init__(self, lines: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.x = torch.zeros(lines, width, dtype=dtype, device=device)

    def first(self, lines: int) -> Held:
        """Return the first of the lines, in the same memory."""
        found = copy(self)
        found.x = self.x[:lines]
        return found

    @staticmethod
    def nbytes(lines: int, width: int, dtype: torch.dtype) -> int:
        """Return the bytes that it takes."""
        return lines * width * dtype.itemsize

    def reset(self) -> None:
        """Zero everything."""
        self.x.zero_()

    def write(self, index: Tensor, x: Tensor) -> None:
        """Write x (M, W) at the lines `index` (M,)."""
        self.x.index_copy_(0, index, x.to(self.x.dtype))

    def all(self) -> Tensor:
        """Return all lines, (lines, W)."""
        return self.x

    def take(self, index: Tensor) -> Tensor:
        """Return (M, W), the lines `index` (M,)."""
        return self.x.index_select(0, index)


class DenseCache:
    """Keys and values (R, L, G, D) for each layer, a tensor (R, L, F) for each remembered layer, held as `held` holds them.

    The keys of one head lie together, a line for each position, which is how attention reads them.
    """

    def __init__(self, shape: CacheShape, held: type[Held] = Held) -> None:
        rows, heads = shape.rows, shape.rows * shape.n_kv_heads

        def lines(number: int, width: int) -> Held:
            return held(number * shape.length, width, shape.dtype, shape.device)

        self.keys = [lines(heads, shape.head_dim) for _ in range(shape.n_layers)]
        self.values = [lines(heads, shape.head_dim) for _ in range(shape.n_layers)]
        self.remembered = {layer: lines(rows, shape.features) for layer in shape.remembered}
        self._write_lines = _kernel(shape.device) if held is Held else None
        self._lay_out(shape)

    def _lay_out(self, shape: CacheShape) -> None:
        """Take lines for those of a shape."""
        self._shape, heads = shape, shape.rows * shape.n_kv_heads
        starts = torch.arange(heads, device=shape.device) * shape.length
        self._row_starts, self._head_starts = starts[: shape.rows, None].clone(), starts.view(shape.rows, -1, 1)

    def lend(self, shape: CacheShape) -> DenseCache | None:
        """Return a cache of another shape in this one's memory; None if it does not suffice, or holds something else."""
        mine, places = self._shape, shape.rows * shape.length
        alike = attrs.evolve(shape, rows=mine.rows, length=mine.length) == mine
        if not alike or places > mine.rows * mine.length:
            return None
        lent, heads = copy(self), places * shape.n_kv_heads
        lent.keys, lent.values = ([held.first(heads) for held in each] for each in (self.keys, self.values))
        lent.remembered = {layer: held.first(places) for layer, held in self.remembered.items()}
        lent._lay_out(shape)
        return lent

    @staticmethod
    def nbytes(shape: CacheShape, held: type[Held] = Held) -> int:
        """Return the bytes that it takes."""
        heads = shape.rows * shape.n_kv_heads
        keys = held.nbytes(heads * shape.length, shape.head_dim, shape.dtype)
        remembered = len(shape.remembered) * held.nbytes(shape.rows * shape.length, shape.features, shape.dtype)
        return 2 * shape.n_layers * keys + remembered + (shape.rows + heads) * torch.int64.itemsize

    def reset(self) -> None:
        """Zero everything."""
        for held in (*self.keys, *self.values, *self.remembered.values()):
            held.reset()

    def update(self, write: CacheWrite) -> KeyValue:
        """Write in place; return the layer's whole cache."""
        keys, values = self.keys[write.layer], self.values[write.layer]
        if self._write_lines is not None and not torch.compiler.is_compiling():
            self._write_lines(keys.x, values.x, write.positions, write.keys, write.values)
        else:
            index = self._head_lines(write.positions)
            keys.write(index, write.keys.transpose(1, 2).flatten(0, 2))
            values.write(index, write.values.transpose(1, 2).flatten(0, 2))
        return KeyValue(self._by_position(keys.all()), self._by_position(values.all()), write.bias, write.padding)

    def recall(self, layer: int, site: Site, positions: Tensor) -> Tensor:
        """Return (R, N, F): the remembered tensor, or the cached key or value itself."""
        if site in ("hidden", "query"):
            return self.remembered[layer].take(self._lines(positions)).view(*positions.shape, -1)
        held = self.keys if site == "key" else self.values
        return self._by_position(held[layer].take(self._head_lines(positions))).flatten(2)

    def remember(self, layer: int, positions: Tensor, x: Tensor) -> None:
        """Write in place."""
        self.remembered[layer].write(self._lines(positions), x.flatten(0, 1))

    def _lines(self, positions: Tensor) -> Tensor:
        """Return (R N,), the lines of positions (R, N) where a position has one."""
        return (positions + self._row_starts).flatten()

    def _head_lines(self, positions: Tensor) -> Tensor:
        """Return (R G N,), the lines of positions (R, N) where a position has one for each head."""
        return (positions.unsqueeze(1) + self._head_starts).flatten()

    def _by_position(self, lines: Tensor) -> Tensor:
        """Return lines (R G N, D) as (R, N, G, D), without a copy."""
        return lines.view(self._shape.rows, self._shape.n_kv_heads, -1, self._shape.head_dim).transpose(1, 2)


def _kernel(device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None] | None:
    """Return what writes keys and values at once on a device; None where nothing does."""
    if not runs_triton(device):
        return None
    from esdllm_backends.cache.lines import write_lines

    return write_lines
