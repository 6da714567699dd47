"""From slots to a step and back: the rows that take part, brought together in a canvas, and their keys where they lie."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import attrs
from torch import Tensor

from esdllm.checkpoints.loading import Model
from esdllm.errors import UnavailableError
from esdllm.interfaces import Cache, ClosingCache, SlottedCache
from esdllm.plan import Step
from esdllm.plugins.capabilities import closing, slotted
from esdllm.runtime.beginning import empty
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.components import Components
from esdllm.runtime.seats import Seat, needed, shared_length
from esdllm.runtime.sharing import sent
from esdllm.runtime.standing import standing
from esdllm.views import CacheShape

__all__ = ["Gathered", "Gathering"]

_CACHES = 64
"""groups of rows whose caches are kept where they are made of no step's form"""

_READ = {"given", "logical", "bias", "padding", "offsets", "columns", "seeds"}
"""what a step only reads of a canvas"""

_BEYOND: dict[str, Any] = {"given": True, "bias": float("-inf")}
"""what stands in the columns of a slot beyond its row, where it is not 0: nothing to decide, and nothing to attend to"""


class Gathered(NamedTuple):
    """The rows of a step."""

    canvas: Canvas
    """(n, L)"""
    cache: Cache
    """over those rows, in the memory of all"""
    apart: Tensor | None
    """(n,) int64, the slots that the canvas was copied from; None if it is these slots' own memory"""
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
    layers: frozenset[int]
    """those that drop positions"""
    behind: int
    """columns of a slot that no row of its own takes: a short block's window is filled up with them"""
    _canvases: dict[object, Canvas] = attrs.field(factory=dict, init=False)
    _caches: dict[tuple[int, ...], tuple[Cache, Tensor | None]] = attrs.field(factory=dict, init=False)

    @classmethod
    def over(cls, model: Model, components: Components, shape: CacheShape, count: int, has_forms: bool) -> Gathering:
        """Return empty slots, with a cache of a shape from `Components.slots_shape`.

        Raises:
            UnavailableError: the store's caches hold whole batches only.
        """
        cache = components.cache.allocate(shape)
        if (parted := slotted(cache)) is None:
            raise UnavailableError(
                f"{components.named('cache')} cannot hold rows that come and go: its cache has no method 'slots'; choose "
                'another, such as cache = "dense"'
            )
        home = empty(model, components, shape.rows // components.branches, shape.length)
        return cls(
            home,
            parted,
            closing(cache),
            count,
            has_forms,
            frozenset(components.slot_layers(model.spec.n_layers, shape.length - components.behind)),
            components.behind,
        )

    def check_layers(self, layers: Collection[int]) -> None:
        """Refuse a row for which a layer is to remember what the cache has no room for.

        Raises:
            UnavailableError: names the layers.
        """
        if not self.layers.issuperset(layers):
            raise UnavailableError(
                f"the skip schedule drops positions of this prompt at layers {tuple(layers)}, of others at "
                f"{sorted(self.layers)}; give one whose layers do not depend on the canvas"
            )

    @property
    def length(self) -> int:
        """L, the columns of a slot, those behind its longest row included."""
        return self.home.columns.shape[0]

    @property
    def longest(self) -> int:
        """The columns that a row may have."""
        return self.length - self.behind

    def place(self, slot: int, row: Canvas) -> None:
        """Put a canvas of one row into a slot, with an empty cache."""
        length, spec = row.columns.shape[0], self.home.spec
        for name, mine in _tensors(self.home).items():
            theirs = getattr(row, name)
            if name == "columns":
                continue
            mine[slot].fill_(_BEYOND.get(name, 0) if name != "tokens" else spec.eos_id)
            own = _first(name, mine, length)[slot]
            own.zero_() if theirs is None else own.copy_(theirs[0])
        for branch in range(self.home.branches):
            first = self._line(slot, branch)
            self.cache.slots(slice(first, first + 1), self.length).reset()

    def gather(self, seats: Sequence[Seat], steps: Sequence[Step]) -> Gathered:
        """Return rows that make their `steps` together, over as many columns as the longest of them has, or its filler takes.

        Where steps are compiled or recorded, over as many as any row of their form could have.
        """
        shares = self.has_forms and seats[0].shares
        columns = max(needed(step, seat.length) for step, seat in zip(steps, seats, strict=True))
        length = min(self.length, shared_length(columns)) if shares else columns
        beyond = shares or min(seat.length for seat in seats) < length
        hides = self.has_forms or beyond or any(seat.padded for seat in seats)
        width = self._width(len(seats))
        slots = [*(seat.slot for seat in seats), *[self.count] * (width - len(seats))]
        apart = None if not self.has_forms and _neighbours(slots) else self._sent(slots)
        found = self._taken(slice(slots[0], slots[-1] + 1) if apart is None else apart, length, hides, beyond)
        if self.has_forms:
            found = standing(self._canvases, found)
        return Gathered(found, self._cache_of(slots, length), apart, width - len(seats))

    def scatter(self, gathered: Gathered) -> None:
        """Put back what a step wrote."""
        if gathered.apart is None:
            return
        length = gathered.canvas.columns.shape[0]
        for name, mine in _tensors(self.home).items():
            if name not in _READ:
                _first(name, mine, length).index_copy_(0, gathered.apart, getattr(gathered.canvas, name))

    def row(self, slot: int, length: int, padded: bool) -> Canvas:
        """Return a copy of one slot's canvas."""
        return self._taken(self._sent([slot]), length, padded)

    def close(self) -> None:
        """Free all that is held."""
        self._canvases.clear()
        self._caches.clear()
        if self.closing is not None:
            self.closing.close()

    def _taken(self, rows: slice | Tensor, length: int, hides: bool, beyond: bool = False) -> Canvas:
        """Return some rows' first columns, with a bias if any `hides` a column, `beyond` its own ones among them.

        Neighbours, told as a slice, stay where they are; of others it is a copy.
        """
        found: dict[str, Any] = {"columns": self.home.columns[:length]}
        for name, mine in _tensors(self.home).items():
            if name != "columns":
                part = _first(name, mine, length)
                found[name] = part[rows] if isinstance(rows, slice) else part.index_select(0, rows)
        for name in ("bias", "padding"):
            found[name] = self.home.rows(found[name]) if hides else None
        if beyond:  # then padding is not all that the bias hides
            found["padding"] = None
        return attrs.evolve(self.home, **found)

    def _width(self, rows: int) -> int:
        """Return how many rows a step is made over for so many."""
        return min(self.count, 1 << (rows - 1).bit_length()) if self.has_forms else rows

    def _line(self, slot: int, branch: int) -> int:
        """Return the cache's row of a slot's branch."""
        return branch * self.count + slot if slot < self.count else self.home.branches * self.count + branch

    def _cache_of(self, slots: Sequence[int], length: int) -> Cache:
        rows = [self._line(slot, branch) for branch in range(self.home.branches) for slot in slots]
        whole = list(slots) == list(range(self.count))  # the spare one is a neighbour, too
        if not self.has_forms:
            found = self._caches.get(key := (*slots, length))
            if found is None:
                lines = slice(rows[0], rows[-1] + 1) if _neighbours(rows) else self._sent(rows)
                found = self._caches[key] = self.cache.slots(lines, length), None
                if len(self._caches) > _CACHES:
                    del self._caches[next(iter(self._caches))]
            return found[0]
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


def _neighbours(rows: Sequence[int]) -> bool:
    """Return whether rows lie one behind the other."""
    return list(rows) == list(range(rows[0], rows[0] + len(rows)))


def _first(name: str, x: Tensor, length: int) -> Tensor:
    """Return the first columns of a canvas' tensor that has columns, the tensor itself if it has none."""
    return x[:, :length] if x.dim() > 1 and name != "drift" else x


def _tensors(canvas: Canvas) -> dict[str, Tensor]:
    """Return the tensors of a canvas by name."""
    named = {field.name: getattr(canvas, field.name) for field in attrs.fields(Canvas)}
    return {name: x for name, x in named.items() if isinstance(x, Tensor)}
