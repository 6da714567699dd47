"""A row in a slot: planned by itself, from its own counters and its own commits."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

import attrs

from esdllm.plan import Block, Facts, Layout, Phase, Step
from esdllm.planning.schedule import Planner
from esdllm.runtime.beginning import Beginning
from esdllm.runtime.components import Components
from esdllm.runtime.records import Effort
from esdllm.runtime.sharing import form

__all__ = ["Seat", "needed", "row_form", "row_planner", "shared_length", "shares_columns"]

_ALIKE = 512
"""columns up to which rows of any lengths make their steps together"""


def shared_length(length: int) -> int:
    """Return the columns over which rows of `length` columns can make their steps with others; a power of two beyond a few."""
    return max(_ALIKE, 1 << (length - 1).bit_length())


def needed(step: Step, length: int) -> int:
    """Return the columns that a step of a row of `length` columns is made over at least."""
    return length if step.filler is None else step.filler.stop


def shares_columns(step: Step, length: int, components: Components) -> bool:
    """Return whether a step of a row of `length` columns can be made over more: the others are hidden from attention."""
    plan, columns = step.plan, needed(step, length)
    return components.cache.persistent and plan.phase is Phase.ALL and not plan.open and plan.window < columns


def row_form(step: Step, length: int, components: Components) -> Hashable:
    """Return what the steps of two rows have in common if they can be made as one; this row has `length` columns."""
    shares, columns = shares_columns(step, length, components), needed(step, length)
    return (shared_length(columns) if shares else columns, shares, components.kernels, form(step))


def row_planner(
    components: Components, layout: Layout, n_layers: int, behind: int, early_stop: bool = False
) -> Planner:
    """Return the planner of a row in a slot, with `behind` hidden columns there: its steps are of few forms."""
    return components.planner(layout, n_layers, early_stop, few_sights=True, behind=behind)


@attrs.define(eq=False)
class Seat:
    """A row that is being decoded, and what it took so far."""

    slot: int
    """where it is"""
    length: int
    """L, the columns of its canvas"""
    room: int
    """columns of padding that stand before its first token"""
    padded: bool
    """whether any column of it is padding"""
    span: slice
    """the columns of the answer"""
    fill: bool
    """whether end-of-text is written behind its first stop"""
    end: bool
    """whether the answer ends at its first stop"""
    components: Components
    """what decodes it"""
    planner: Planner
    """plans its steps"""
    read: Callable[[int], Facts]
    """returns the facts of a slot after the last step made there"""
    effort: Effort = Effort()
    """what it took so far; wall-clock time is that of its steps, which others shared"""
    made: Step | None = None
    """the last step; None before the first"""
    _walk: Iterator[Step] = attrs.field(init=False)
    _next: Step | None = attrs.field(default=None, init=False)
    _asked: bool = attrs.field(default=False, init=False)

    @_walk.default
    def _walk_of_planner(self) -> Iterator[Step]:
        return self.planner.walk(lambda: self.read(self.slot))

    @classmethod
    def of(
        cls,
        slot: int,
        began: Beginning,
        n_layers: int,
        components: Components,
        infill: bool,
        behind: int,
        read: Callable[[int], Facts],
    ) -> Seat:
        """Return the seat of a row that begins; `behind` hidden columns may fill up a short block's window."""
        early_stop = components.config.early_stop and not infill
        return cls(
            slot,
            began.layout.length,
            began.layout.starts[0] if began.layout.starts else 0,
            padded=bool(began.layout.starts),
            span=began.spans[0],
            fill=early_stop,
            end=not infill,
            components=components,
            planner=row_planner(components, began.layout, n_layers, behind, early_stop),
            read=read,
        )

    @property
    def next(self) -> Step | None:
        """The step that comes next; None if the row is decoded. May ask the device what the last one decided."""
        if not self._asked:
            self._next, self._asked = next(self._walk, None), True
        return self._next

    @property
    def form(self) -> Hashable:
        """What the next steps of two rows have in common if they can be made as one; None if the row is decoded."""
        return None if self.next is None else row_form(self.next, self.length, self.components)

    @property
    def shares(self) -> bool:
        """Whether the next step can be made over more columns than the row has: the others are hidden from attention."""
        return self.next is not None and shares_columns(self.next, self.length, self.components)

    @property
    def refreshes(self) -> bool:
        """Whether the next step refreshes, which takes longer than others."""
        return self.next is not None and self.next.scope.refresh

    def note(self, seconds: float, compile_seconds: float) -> None:
        """Take the next step as made."""
        if self._next is None:
            raise AssertionError("only a step that comes next is made")
        self.made, self._next, self._asked = self._next.unfilled(), None, False
        self.effort = self.effort.after(self.made, self.length, seconds, compile_seconds)

    @property
    def block(self) -> Block:
        """The block of the last step."""
        return Block(0, 0) if self.made is None else self.made.block
