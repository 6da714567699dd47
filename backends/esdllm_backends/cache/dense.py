"""Keys and values of all positions, on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import copy

import attrs
import torch
from torch import Tensor

from esdllm import Cache, CacheShape, CacheWrite, KeyValue, Memory, Phase, Site, runs_triton
from esdllm_backends.cache.places import Places


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

    def between(self, start: int, stop: int) -> Held:
        """Return the lines from `start` to `stop`, in the same memory."""
        found = copy(self)
        found.x = self.x[start:stop]
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
        self._write_lines = _triton_write(shape.device) if held is Held else None
        self._lay_out(shape, Places.whole(shape))

    def _lay_out(self, shape: CacheShape, places: Places) -> None:
        """Take lines for those of a shape's rows and columns, which lie at `places`."""
        self._shape, self._places = shape, places
        if places.together:  # these never move
            self._row_starts = places.starts(shape.device)
            self._head_starts = places.starts(shape.device, shape.n_kv_heads).unsqueeze(2)

    def lend(self, shape: CacheShape) -> DenseCache | None:
        """Return a cache of another shape in this one's memory; None if it does not suffice, or holds something else."""
        mine, lines = self._shape, shape.rows * shape.length
        alike = attrs.evolve(shape, rows=mine.rows, length=mine.length) == mine
        if not alike or lines > mine.rows * mine.length:
            return None
        return self._of(slice(0, lines), shape, Places.whole(shape))

    def slots(self, rows: slice | Tensor, length: int) -> DenseCache:
        """Return a cache over some rows and their first columns, in this memory; neighbours are read where they are."""
        places, needed = self._places.of(rows, length)
        lines = slice(needed.start * places.columns, needed.stop * places.columns)
        return self._of(lines, attrs.evolve(self._shape, rows=places.count, length=length), places)

    def _of(self, lines: slice, shape: CacheShape, places: Places) -> DenseCache:
        """Return a cache over a range of lines, counted where a position has one."""
        found, heads = copy(self), shape.n_kv_heads
        start, stop = lines.start * heads, lines.stop * heads
        found.keys, found.values = ([held.between(start, stop) for held in each] for each in (self.keys, self.values))
        found.remembered = {layer: held.between(lines.start, lines.stop) for layer, held in self.remembered.items()}
        found._lay_out(shape, places)
        return found

    @staticmethod
    def nbytes(shape: CacheShape, held: type[Held] = Held) -> int:
        """Return the bytes that it takes, with the keys and values of one layer if rows that are no neighbours are copied."""
        heads = shape.rows * shape.n_kv_heads
        keys = held.nbytes(heads * shape.length, shape.head_dim, shape.dtype)
        remembered = len(shape.remembered) * held.nbytes(shape.rows * shape.length, shape.features, shape.dtype)
        copied = 2 * heads * shape.length * shape.head_dim * shape.dtype.itemsize if shape.slotted else 0
        return 2 * shape.n_layers * keys + remembered + copied + (shape.rows + heads) * torch.int64.itemsize

    def reset(self) -> None:
        """Zero everything."""
        for held, each in self._all_held():
            if self._places.together:
                held.reset()
            else:
                index = self._places.all_lines(self._shape.device, each)
                held.write(index, torch.zeros_like(held.take(index)))

    def _all_held(self) -> Iterator[tuple[Held, int]]:
        """Yield all that is held, and how many lines a position has there."""
        yield from ((held, self._shape.n_kv_heads) for held in (*self.keys, *self.values))
        yield from ((held, 1) for held in self.remembered.values())

    def update(self, write: CacheWrite) -> KeyValue:
        """Write in place; return the layer's whole cache."""
        keys, values = self.keys[write.layer], self.values[write.layer]
        if self._write_lines is not None and self._places.together and not torch.compiler.is_compiling():
            self._write_lines(keys.x, values.x, write.positions, write.keys, write.values)
        else:
            index = self._head_lines(write.positions)
            keys.write(index, write.keys.transpose(1, 2).flatten(0, 2))
            values.write(index, write.values.transpose(1, 2).flatten(0, 2))
        return KeyValue(self._all_of(keys), self._all_of(values), write.bias, write.padding)

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
        if not self._places.together:
            return self._places.lines(positions)
        return (positions + self._row_starts).flatten()

    def _head_lines(self, positions: Tensor) -> Tensor:
        """Return (R G N,), the lines of positions (R, N) where a position has one for each head."""
        if not self._places.together:
            return self._places.lines(positions, self._shape.n_kv_heads)
        return (positions.unsqueeze(1) + self._head_starts).flatten()

    def _all_of(self, held: Held) -> Tensor:
        """Return (R, L, G, D), every column that is used; a copy only where the rows are no neighbours, or are held otherwise."""
        if self._places.together:
            return self._by_position(held.all())[:, : self._places.length]
        return self._by_position(held.take(self._places.all_lines(self._shape.device, self._shape.n_kv_heads)))

    def _by_position(self, lines: Tensor) -> Tensor:
        """Return lines (R G N, D) as (R, N, G, D), without a copy."""
        return lines.view(self._shape.rows, self._shape.n_kv_heads, -1, self._shape.head_dim).transpose(1, 2)


def _triton_write(device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], None] | None:
    """Return what writes keys and values at once on a device; None where nothing does."""
    if not runs_triton(device):
        return None
    from esdllm_backends.cache.lines import write_lines

    return write_lines
