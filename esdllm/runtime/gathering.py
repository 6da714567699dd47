"""From slots to a step and back: the rows that take part, brought together in a canvas, and their keys where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import attrs
from torch import Tensor

from esdllm.interfaces import Cache, ClosingCache, SlottedCache
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.sharing import sent
from esdllm.runtime.standing import standing

__all__ = ["Gathered", "Gathering"]

_READ = {"given", "logical", "bias", "padding", "columns", "seeds"}
"""what a step only reads of a canvas"""


class Gathered(NamedTuple):
    """The rows of a step."""

    canvas: Canvas
    """(n, L), a copy"""
    cache: Cache
    """over those rows, in the memory of all"""
    slots: Tensor
    """(n,) int64, where they came from"""
    spare: int
    """how many of them, the last ones, only make the number one that is recorded"""


@attrs.define(eq=False)
class Gathering:
    """The canvas and the cache of all slots.

    Where steps are compiled or recorded, `has_forms`, a spare slot stands behind the others: it fills groups of rows up to a
    power of two, so that few numbers of rows occur. Where all rows take part, and anywhere else where they are neighbours,
    their keys are read where they are.
    """

    home: Canvas
    """(slots, L), a row for each slot; its bias and padding are those of one branch"""
    cache: SlottedCache
    """the branches one after the other, (branches slots) rows and then the spare ones"""
    closing: ClosingCache | None
    """that cache, if it is to be closed"""
    count: int
    """slots, without the spare one"""
    has_forms: bool
    _canvases: dict[object, Canvas] = attrs.field(factory=dict, init=False)
    _caches: dict[tuple[int, int], tuple[Cache, Tensor | None]] = attrs.field(factory=dict, init=False)

    @property
    def length(self) -> int:
        """L, the columns of a slot."""
        return self.home.columns.shape[0]

    def place(self, slot: int, row: Canvas) -> None:
        """Put a canvas of one row into a slot, with an empty cache."""
        length, spec = row.columns.shape[0], self.home.spec
        for name, mine in _tensors(self.home).items():
            theirs = getattr(row, name)
            if name == "columns":
                continue
            mine[slot].fill_({"tokens": spec.eos_id, "given": True}.get(name, 0))  # what lies beyond the row is inert
            if theirs is not None:
                _first(name, mine, length)[slot] = theirs[0]
        for branch in range(self.home.branches):
            first = self._line(slot, branch)
            self.cache.slots(slice(first, first + 1), self.length).reset()

    def gather(self, slots: Sequence[int], length: int, padded: bool) -> Gathered:
        """Return the rows in `slots`, whose canvases are of `length` columns; with a bias if any is `padded`."""
        width = self._width(len(slots))
        slots = [*slots, *[self.count] * (width - len(slots))]
        index = self._sent(slots)
        found = self._taken(index, length, padded or self.has_forms)
        if self.has_forms:
            found = standing(self._canvases, found)
        return Gathered(found, self._cache_of(slots, length), index, slots.count(self.count))

    def scatter(self, gathered: Gathered) -> None:
        """Put back what a step wrote."""
        length = gathered.canvas.columns.shape[0]
        for name, mine in _tensors(self.home).items():
            if name not in _READ:
                _first(name, mine, length).index_copy_(0, gathered.slots, getattr(gathered.canvas, name))

    def row(self, slot: int, length: int, padded: bool) -> Canvas:
        """Return a copy of one slot's canvas."""
        return self._taken(self._sent([slot]), length, padded)

    def close(self) -> None:
        """Free all that is held."""
        self._canvases.clear()
        self._caches.clear()
        if self.closing is not None:
            self.closing.close()

    def _taken(self, index: Tensor, length: int, padded: bool) -> Canvas:
        found: dict[str, Any] = {"columns": self.home.columns[:length]}
        for name, mine in _tensors(self.home).items():
            if name != "columns":
                found[name] = _first(name, mine, length).index_select(0, index)
        for name in ("bias", "padding"):
            found[name] = self.home.rows(found[name]) if padded else None
        return attrs.evolve(self.home, **found)

    def _width(self, rows: int) -> int:
        """Return how many rows a step is made over for so many."""
        return min(self.count, 1 << (rows - 1).bit_length()) if self.has_forms else rows

    def _line(self, slot: int, branch: int) -> int:
        """Return the cache's row of a slot's branch."""
        return branch * self.count + slot if slot < self.count else self.home.branches * self.count + branch

    def _cache_of(self, slots: Sequence[int], length: int) -> Cache:
        rows = [self._line(slot, branch) for branch in range(self.home.branches) for slot in slots]
        neighbours = rows == list(range(rows[0], rows[0] + len(rows)))
        whole = list(slots) == list(range(self.count))  # the spare one is a neighbour, too
        if not self.has_forms:
            return self.cache.slots(slice(rows[0], rows[-1] + 1) if neighbours else self._sent(rows), length)
        key = (0 if whole else len(slots), length)
        if key not in self._caches:
            index = None if whole else self._sent(rows)
            given = slice(0, len(rows)) if index is None else index
            self._caches[key] = self.cache.slots(given, length), index
        cache, index = self._caches[key]
        if index is not None:
            index.copy_(self._sent(rows))
        return cache

    def _sent(self, rows: Sequence[int]) -> Tensor:
        return sent(rows, self.home.tokens.device)


def _first(name: str, x: Tensor, length: int) -> Tensor:
    """Return the first columns of a canvas' tensor that has columns, the tensor itself if it has none."""
    return x[:, :length] if x.dim() > 1 and name != "drift" else x


def _tensors(canvas: Canvas) -> dict[str, Tensor]:
    """Return the tensors of a canvas by name."""
    named = {field.name: getattr(canvas, field.name) for field in attrs.fields(Canvas)}
    return {name: x for name, x in named.items() if isinstance(x, Tensor)}
