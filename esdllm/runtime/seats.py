"""A row in a slot: planned by itself, from its own counters and its own commits."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

import attrs

from esdllm.plan import Block, Facts, Step
from esdllm.planning.schedule import Planner
from esdllm.runtime.records import Effort
from esdllm.runtime.sharing import form

__all__ = ["Seat"]


@attrs.define(eq=False)
class Seat:
    """A row that is being decoded, and what it took so far."""

    slot: int
    """where it is"""
    length: int
    """L, the columns of its canvas"""
    room: int
    """columns of padding that were put before it"""
    padded: bool
    """whether any column of it is padding"""
    start: int
    """first column of the answer, counted behind `room`"""
    fill: bool
    """whether end-of-text is written behind its first stop"""
    end: bool
    """whether the answer ends at its first stop"""
    planner: Planner
    """plans its steps"""
    read: Callable[[int], Facts]
    """returns the facts of a slot after the last step made there"""
    effort: Effort = Effort()
    """what it took so far; wall-clock time is that of its steps, which others shared"""
    block: Block = Block(0, 0)
    """the block of the last step"""
    _walk: Iterator[Step] = attrs.field(init=False)
    _next: Step | None = attrs.field(default=None, init=False)
    _asked: bool = attrs.field(default=False, init=False)

    @_walk.default
    def _walk_of_planner(self) -> Iterator[Step]:
        return self.planner.walk(lambda: self.read(self.slot))

    @property
    def next(self) -> Step | None:
        """The step that comes next; None if the row is decoded. May ask the device what the last one decided."""
        if not self._asked:
            self._next, self._asked = next(self._walk, None), True
        return self._next

    @property
    def form(self) -> Hashable:
        """What the next steps of two rows have in common if they can be made as one; None if the row is decoded."""
        return None if self.next is None else (self.length, form(self.next))

    def note(self, seconds: float, compile_seconds: float) -> None:
        """Take the next step as made."""
        if self._next is None:
            raise AssertionError("only a step that comes next is made")
        self.effort = self.effort.after(self._next.plan, seconds, compile_seconds)
        self.block, self._next, self._asked = self._next.block, None, False
