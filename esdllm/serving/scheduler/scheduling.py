"""The scheduler: what it knows, and the few moments at which it is told or asked something."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile
from typing import Any

import attrs

from esdllm.errors import InputError, QueueFullError, brief
from esdllm.serving.scheduler.admission import Admission, InOrder
from esdllm.serving.scheduler.policies import Policy, RefreshesTogether
from esdllm.serving.scheduler.rows import Queued, Ready, Upcoming

__all__ = ["Scheduler"]

_STAYS = 32  # the last stays in slots, which tell how soon one becomes free


@attrs.define
class _Place:
    """A slot that is taken."""

    number: int
    columns: int
    deadline: float | None
    admission: int
    since: float
    waited: int = 0
    refreshed: int | None = None


def _at_least(least: int) -> Callable[[Any, Any, Any], None]:
    """Return a validator of whole numbers."""

    def check(_: Any, field: Any, value: Any) -> None:
        if type(value) is not int or value < least:
            raise InputError(f"{field.name} = {brief(value)}; give a whole number of at least {least}")

    return check


@attrs.define(eq=False, on_setattr=[])
class Scheduler:
    """Requests that wait, the slots that they are admitted to, and whose steps are made next.

    `now` is seconds of any clock that never goes back. Requests are called by numbers, slots by theirs; both are the caller's.
    Rows that make a step together have one form, so which of them a policy lets go first changes no answer.

    Requests are admitted in the order of arrival as far as `admission` promises it, and a row sees no more than
    `policy.bound(slots)` steps of others before its own.
    """

    slots: int = attrs.field(validator=_at_least(1))
    max_queue: int = attrs.field(validator=_at_least(0))
    """how many requests may wait beyond those for which a slot is free"""
    policy: Policy = attrs.field(factory=RefreshesTogether)
    admission: Admission = attrs.field(factory=InOrder)
    _queue: dict[int, Queued] = attrs.field(factory=dict, init=False)
    """in the order of arrival"""
    _places: dict[int, _Place] = attrs.field(factory=dict, init=False)
    """by slot"""
    _stays: deque[float] = attrs.field(factory=lambda: deque(maxlen=_STAYS), init=False)
    """seconds from admission to release"""
    _refreshing: set[int] = attrs.field(factory=set, init=False)
    """slots whose next step was a refresh when steps were chosen"""
    _now: float = attrs.field(default=0.0, init=False)
    _admissions: int = attrs.field(default=0, init=False)
    _refused: int = attrs.field(default=0, init=False)
    """since a request was last admitted"""

    @property
    def waiting(self) -> int:
        """How many requests wait for a slot."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """How many slots are taken."""
        return len(self._places)

    @property
    def free(self) -> int:
        """How many slots are free."""
        return self.slots - len(self._places)

    def offer(self, number: int, *, columns: int, now: float, deadline: float | None = None) -> None:
        """Let a request wait, whose canvas will have so many columns, until the time `deadline` at most.

        Raises:
            QueueFullError: as many wait as may; says after how many seconds there should be room.
            InputError: a request of that number waits already or has a slot.
        """
        self._now = now
        if number in self._queue or any(place.number == number for place in self._places.values()):
            raise InputError(f"a request of the number {number} is here already; give each a number of its own")
        if len(self._queue) >= self.max_queue + self.free:
            self._refused += 1
            raise QueueFullError(
                f"{len(self._queue)} requests wait, and no more than {self.max_queue} may; come again later",
                self._soon(),
            )
        self._queue[number] = Queued(number, columns, deadline)

    def cancel(self, number: int) -> bool:
        """Forget a request that waits, and return whether it did; one that has a slot is `released`."""
        return self._queue.pop(number, None) is not None

    def expired(self, now: float) -> list[int]:
        """Return the requests whose deadline is over, first those that waited, which are forgotten by this.

        Those that have a slot are told again until it is `released`.
        """
        self._now = now
        late = [one.number for one in self._queue.values() if _over(one.deadline, now)]
        for number in late:
            del self._queue[number]
        return [*late, *(place.number for place in self._places.values() if _over(place.deadline, now))]

    def admissions(self, upcoming: Mapping[int, Upcoming], now: float) -> list[int]:
        """Return the requests to admit now, as many as there are slots for or fewer. Each waits until it is `admitted`."""
        self._now = now
        if not self._queue or not self.free:
            return []
        rows = self._rows(upcoming)
        return [one.number for one in self.admission.admit(list(self._queue.values()), self.free, rows)]

    def admitted(self, number: int, slot: int) -> None:
        """Take note that a request that waited has a slot.

        Raises:
            InputError: it did not wait, or the slot is taken.
        """
        if number not in self._queue or slot in self._places or not self.free:
            raise InputError(
                f"request {number} cannot take slot {slot}: waiting are {list(self._queue)}, taken are {sorted(self._places)} "
                f"of {self.slots}"
            )
        for earlier in takewhile(lambda other: other != number, list(self._queue)):
            one = self._queue[earlier]
            self._queue[earlier] = one._replace(overtaken=one.overtaken + 1)
        request = self._queue.pop(number)
        self._places[slot] = _Place(number, request.columns, request.deadline, self._admissions, self._now)
        self._admissions, self._refused = self._admissions + 1, 0

    def released(self, slot: int) -> None:
        """Take note that a slot is free again, whatever has become of its row.

        Raises:
            InputError: it was not taken.
        """
        self._stays.append(self._now - self._place(slot).since)
        del self._places[slot]

    def choose(self, upcoming: Mapping[int, Upcoming]) -> tuple[int, ...]:
        """Return the slots that make the next step, ascending: all of one form, by the policy. Empty where none has a step.

        Raises:
            InputError: a slot is not taken.
        """
        if not (rows := self._rows(upcoming)):
            return ()
        self._refreshing = {row.slot for row in rows if row.refreshes}
        form = self.policy.choose(rows)
        return tuple(sorted(row.slot for row in rows if row.form == form))

    def stepped(self, slots: Iterable[int]) -> None:
        """Take note of a step that some slots made together: all others saw it, and whoever waits though a slot is free.

        Raises:
            InputError: a slot is not taken.
        """
        made = {slot: self._place(slot) for slot in slots}
        for slot, place in self._places.items():
            place.waited = 0 if slot in made else place.waited + 1
            if slot in made and slot in self._refreshing:
                place.refreshed = 0
            elif place.refreshed is not None:
                place.refreshed += 1
        if self._queue and self.free:
            self._queue = {number: one._replace(held=one.held + 1) for number, one in self._queue.items()}

    def _rows(self, upcoming: Mapping[int, Upcoming]) -> list[Ready]:
        found = []
        for slot, coming in upcoming.items():
            place = self._place(slot)
            found.append(Ready(slot, *coming, place.waited, place.admission, place.columns, place.refreshed))
        return found

    def _place(self, slot: int) -> _Place:
        if slot not in self._places:
            raise InputError(f"slot {slot} is not taken; taken are {sorted(self._places)}")
        return self._places[slot]

    def _soon(self) -> float:
        """Return after how many seconds there should be room for the last of those who were refused: 1 if nothing is known.

        Slots become free one by one, each after a mean stay; whoever was refused before comes before.
        """
        if not self._stays:
            return 1.0
        return self._refused * sum(self._stays) / len(self._stays) / self.slots


def _over(deadline: float | None, now: float) -> bool:
    return deadline is not None and deadline <= now
