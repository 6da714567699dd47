"""A machine that serves, as far as time goes: slots before which the scheduler of `esdllm.serving` stands, or static batches."""

from __future__ import annotations

from collections import deque
from itertools import accumulate
from typing import Protocol

import attrs

from esdllm.errors import QueueFullError
from esdllm.measure.simulating.courses import Course, Courses
from esdllm.measure.simulating.pricing import Pricing
from esdllm.measure.simulating.results import Served
from esdllm.measure.simulating.traffic import Demand
from esdllm.serving.scheduler import Scheduler, Upcoming

__all__ = ["Replica", "SlotReplica", "StaticReplica", "Work"]


@attrs.define
class Work:
    """What was done so far."""

    steps: int = 0
    rows: int = 0
    """that steps were made of, added up"""
    refreshes: int = 0
    late: list[int] = attrs.field(factory=list)
    """requests that their deadline ended"""

    def note(self, steps: int, rows: int, refreshes: int) -> None:
        """Take steps as made, of so many rows each."""
        self.steps, self.rows, self.refreshes = self.steps + steps, self.rows + steps * rows, self.refreshes + refreshes


class Replica(Protocol):
    """What serves. It is told the time; between `start` and `end` it works."""

    work: Work

    @property
    def load(self) -> int:
        """How many requests wait or are decoded."""
        ...

    def offer(self, demand: Demand, now: float, deadline: float | None) -> None:
        """Let a request wait.

        Raises:
            QueueFullError: as many wait as may.
        """
        ...

    def start(self, now: float) -> float | None:
        """Begin to work, and return for how many seconds; None if there is nothing to do."""
        ...

    def end(self, now: float) -> list[Served]:
        """Be done with that, and return who is answered."""
        ...


@attrs.define
class _Row:
    demand: Demand
    course: Course
    admitted: float = 0.0
    first: float | None = None
    place: int = 0


@attrs.define
class SlotReplica:
    """Slots, refilled as rows end."""

    scheduler: Scheduler
    courses: Courses
    pricing: Pricing
    work: Work = attrs.field(factory=Work, init=False)
    _waiting: dict[int, _Row] = attrs.field(factory=dict, init=False)
    _rows: dict[int, _Row] = attrs.field(factory=dict, init=False)
    """by slot"""
    _upcoming: dict[int, Upcoming] = attrs.field(factory=dict, init=False)
    _group: tuple[int, ...] = ()

    @property
    def load(self) -> int:
        """How many requests wait or are decoded."""
        return self.scheduler.waiting + self.scheduler.running

    def offer(self, demand: Demand, now: float, deadline: float | None) -> None:
        """Let a request wait; see `Replica`."""
        row = _Row(demand, self.courses.of(demand.prompt, demand.answer, demand.number))
        self.scheduler.offer(demand.number, columns=row.course.columns, now=now, deadline=deadline)
        self._waiting[demand.number] = row

    def start(self, now: float) -> float | None:
        """Drop who is late, admit who may, and begin a step."""
        self._drop(now)
        for number in self.scheduler.admissions(self._upcoming, now):
            slot = min(set(range(self.scheduler.slots)) - self._rows.keys())
            self.scheduler.admitted(number, slot)
            row = self._rows[slot] = self._waiting.pop(number)
            row.admitted, self._upcoming[slot] = now, row.course.upcoming[0]
        self._group = self.scheduler.choose(self._upcoming)
        if not self._group:
            return None
        rows = [self._rows[slot] for slot in self._group]
        self.work.note(1, len(rows), self._upcoming[self._group[0]].refreshes)
        plan = max((row.course.plans[row.place] for row in rows), key=lambda plan: plan.decided)
        return self.pricing.seconds(plan, len(rows), max(row.course.columns for row in rows))

    def end(self, now: float) -> list[Served]:
        """Take the step as made, and return whose answer is complete."""
        self.scheduler.stepped(self._group)
        served = []
        for slot in self._group:
            row = self._rows[slot]
            row.place, row.first = row.place + 1, now if row.first is None else row.first
            if row.place < len(row.course.plans):
                self._upcoming[slot] = row.course.upcoming[row.place]
            else:
                number, at, _, answer = row.demand
                served.append(Served(number, at, row.admitted, row.first, now, answer, now))
                self._release(slot)
        return served

    def _drop(self, now: float) -> None:
        for number in self.scheduler.expired(now):
            self.work.late.append(number)
            if self._waiting.pop(number, None) is None:
                self._release(next(slot for slot, row in self._rows.items() if row.demand.number == number))

    def _release(self, slot: int) -> None:
        self.scheduler.released(slot)
        del self._rows[slot], self._upcoming[slot]


@attrs.define
class StaticReplica:
    """Batches of whoever waits: all rows go as long as the longest prompt and answer among them, and are done together."""

    slots: int
    max_queue: int
    courses: Courses
    pricing: Pricing
    work: Work = attrs.field(factory=Work, init=False)
    _queue: deque[Demand] = attrs.field(factory=deque, init=False)
    _batch: list[Demand] = attrs.field(factory=list, init=False)
    _began: float = 0.0
    _times: tuple[float, ...] = ()
    """seconds from the beginning of the batch to the end of each step"""

    @property
    def load(self) -> int:
        """How many requests wait or are decoded."""
        return len(self._queue) + len(self._batch)

    def offer(self, demand: Demand, now: float, deadline: float | None) -> None:
        """Let a request wait; deadlines end nothing here."""
        if len(self._queue) >= self.max_queue + (0 if self._batch else self.slots):
            raise QueueFullError(f"{len(self._queue)} requests wait")
        self._queue.append(demand)

    def start(self, now: float) -> float | None:
        """Begin a batch."""
        self._batch = [self._queue.popleft() for _ in range(min(self.slots, len(self._queue)))]
        if not self._batch:
            return None
        prompt, answer = max(one.prompt for one in self._batch), max(one.answer for one in self._batch)
        course, rows = self.courses.of(prompt, answer, self._batch[0].number), len(self._batch)
        self.work.note(len(course.plans), rows, sum(coming.refreshes for coming in course.upcoming))
        self._began = now
        self._times = tuple(accumulate(self.pricing.seconds(plan, rows, course.columns) for plan in course.plans))
        return self._times[-1]

    def end(self, now: float) -> list[Served]:
        """Return the whole batch."""
        done, self._batch = self._batch, []
        return [self._served(one, now) for one in done]

    def _served(self, one: Demand, now: float) -> Served:
        steps = len(self.courses.of(one.prompt, one.answer, one.number).plans)
        useful = self._began + self._times[min(steps, len(self._times)) - 1]
        return Served(one.number, one.at, self._began, now, now, one.answer, useful)
