"""The work of a session's thread: who is admitted, whose step is made, what is told of it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

from esdllm.errors import EsdllmError, PluginError
from esdllm.foreign import reason
from esdllm.runtime.engine import Engine
from esdllm.runtime.records import Generation
from esdllm.runtime.slots import Slots
from esdllm.serving.intake import TakenRequest
from esdllm.serving.requests import FinishReason, Update
from esdllm.serving.scheduler import Scheduler, Upcoming
from esdllm.serving.state import SessionState
from esdllm.serving.telling import Telling

__all__ = ["Worker"]

_log = logging.getLogger(__name__)


class Worker:
    """Slots, the requests in them and before them, and the scheduler. One thread calls `tick`; any may `offer` one.

    A step of several rows that fails says not whose fault it is. Its rows are decoded anew, each by itself: one that fails again
    is at fault, and the answers of the others are what they would have been.
    """

    def __init__(self, engine: Engine, slots: Slots, scheduler: Scheduler) -> None:
        self._engine, self._slots, self._scheduler = engine, slots, scheduler
        self._lock = Lock()
        """of the scheduler and of what is counted"""
        self._requests: dict[int, TakenRequest] = {}
        """by number, whether they wait or are decoded"""
        self._seated: dict[int, TakenRequest] = {}
        """by slot"""
        self._counts: Counter[str] = Counter()
        self._finished: Counter[FinishReason] = Counter()
        self._opened = self._seen = time.monotonic()
        self._busy_seconds = 0.0
        self._stepping: float | None = None

    @property
    def busy(self) -> bool:
        """Whether any request waits or is decoded."""
        return bool(self._requests)

    def offer(self, taken: TakenRequest) -> None:
        """Let a request wait for a slot.

        Raises:
            QueueFullError: as many wait as may.
        """
        with self._lock:
            self._scheduler.offer(taken.number, columns=taken.columns, now=taken.submitted, deadline=taken.deadline)
            self._requests[taken.number] = taken

    def tick(self) -> None:
        """Admit who can be, make one step, and tell of it."""
        self._expire()
        upcoming = self._upcoming()
        self._admit(upcoming)
        with self._lock:
            group = self._scheduler.choose(upcoming)
        if group:
            self._step(group, upcoming)

    def end(self, number: int, finish: FinishReason, error: EsdllmError | None = None) -> None:
        """End a request that waits or is decoded, with what is settled of its answer; one that has ended is left."""
        if (taken := self._requests.get(number)) is None:
            return
        if taken.slot is not None and error is None:
            with self._failing(taken):
                self._look([taken.slot])
        if number in self._requests:  # or a stop string has ended it
            self._finish(taken, finish, Update(""), error)

    def close(self, error: EsdllmError) -> None:
        """End all requests with an error, and free the slots."""
        for number in list(self._requests):
            self.end(number, FinishReason.ERROR, error)
        self._slots.close()

    def state(self, draining: bool) -> SessionState:
        """Return what is going on, and what has been done."""
        with self._lock:
            now = self._count_time()
            counts, began = self._counts, self._stepping
            return SessionState(
                slots=self._scheduler.slots,
                running=self._scheduler.running,
                waiting=self._scheduler.waiting,
                draining=draining,
                stuck_for=0.0 if began is None else now - began,
                seconds=now - self._opened,
                busy_seconds=self._busy_seconds,
                forwards=counts["forwards"],
                refreshes=counts["refreshes"],
                row_steps=counts["row_steps"],
                prompt_tokens=counts["prompt_tokens"],
                generation_tokens=counts["generation_tokens"],
                finished=dict(self._finished),
            )

    def _count_time(self) -> float:
        """Add up how long slots have been taken, and return what time it is."""
        now = time.monotonic()
        self._busy_seconds += self._scheduler.running * (now - self._seen)
        self._seen = now
        return now

    def _expire(self) -> None:
        with self._lock:
            late = self._scheduler.expired(time.monotonic())
        for number in late:
            self.end(number, FinishReason.DEADLINE)

    def _upcoming(self) -> dict[int, Upcoming]:
        """Return the next step of each row; those that are decoded are told of, and their slots are free."""
        found = {}
        for slot, taken in list(self._seated.items()):
            with self._failing(taken):
                if (following := self._next(slot, taken)) is not None:
                    found[slot] = following
                else:
                    self._complete(taken, self._slots.take(slot))
        return found

    def _next(self, slot: int, taken: TakenRequest) -> Upcoming | None:
        """Return the next step of a row; None if it is decoded."""
        if self._slots.next(slot) is None:
            return None
        seat = self._slots.seat(slot)
        return Upcoming((slot, seat.form) if taken.alone else seat.form, seat.refreshes, seat.shares)

    def _admit(self, upcoming: dict[int, Upcoming]) -> None:
        """Give free slots to who comes next, and add their first steps to what is upcoming."""
        with self._lock:
            numbers = self._scheduler.admissions(upcoming, self._count_time())
        for taken in [self._requests[number] for number in numbers]:
            with self._failing(taken):
                slot = self._place(taken)
                with self._lock:
                    self._scheduler.admitted(taken.number, slot)
                taken.slot, taken.admitted = slot, time.monotonic()
                self._seated[slot] = taken
                if (following := self._next(slot, taken)) is not None:
                    upcoming[slot] = following

    @contextmanager
    def _failing(self, taken: TakenRequest) -> Iterator[None]:
        """End a request with what is raised, which is its own matter."""
        try:
            yield
        except Exception as error:
            self._fail(taken, error)

    def _place(self, taken: TakenRequest, slot: int | None = None) -> int:
        """Put a request into a free slot, and return which."""
        request = taken.request
        prompt = (
            taken.canvas if request.infill else taken.canvas[:, : taken.columns - taken.components.config.gen_length]
        )
        return self._slots.admit(
            prompt, seed=request.seed, infill=request.infill, chat=False, components=taken.components, slot=slot
        )

    def _step(self, group: Sequence[int], upcoming: dict[int, Upcoming]) -> None:
        """Make a step, and tell of it."""
        self._stepping = time.monotonic()
        try:
            self._slots.step(group)
        except Exception as error:
            self._isolate(group, error)
            return
        finally:
            self._stepping = None
        with self._lock:
            self._scheduler.stepped(group)
            self._counts["forwards"] += 1
            self._counts["refreshes"] += upcoming[group[0]].refreshes
            self._counts["row_steps"] += len(group)
        self._look([slot for slot in group if self._seated[slot].watched])

    def _isolate(self, group: Sequence[int], error: Exception) -> None:
        """Fail the row of a step that failed; of several, begin each anew and by itself."""
        if len(group) == 1:
            self._fail(self._seated[group[0]], error)
            return
        _log.warning("a step of %d rows failed, each is decoded again by itself: %s", len(group), reason(error))
        for slot in group:
            taken = self._seated[slot]
            with self._failing(taken):
                self._slots.release(slot)
                self._place(taken, slot)
                taken.alone = True
                taken.telling = Telling(self._engine.model, taken.request, taken.canvas, taken.telling)

    def _look(self, slots: Sequence[int]) -> None:
        """Read what rows have decided and tell of it; one that has reached a stop string ends."""
        shown = self._slots.show([slot for slot in slots if self._slots.seat(slot).made is not None])
        for slot, record in shown.items():
            taken = self._seated[slot]
            update = taken.telling.step(record)
            if taken.telling.stopped:
                self._finish(taken, FinishReason.STOP, update or Update(""))
            elif update is not None and taken.told_as_it_comes:
                self._tell(taken, update)

    def _complete(self, taken: TakenRequest, made: Generation) -> None:
        """End a request whose row is decoded, and whose slot is free."""
        tokens = made.answers[0]
        update = taken.telling.last(made.text[0] if made.text else "", tokens)
        whole = (
            len(tokens) == taken.components.config.gen_length and not taken.telling.stopped and not taken.request.infill
        )
        self._finish(taken, FinishReason.LENGTH if whole else FinishReason.STOP, update, steps=made.steps)

    def _fail(self, taken: TakenRequest, error: Exception) -> None:
        """End a request that cannot be decoded any further."""
        if not isinstance(error, EsdllmError):
            told = PluginError(f"request {taken.number} failed: {reason(error)}")
            told.__cause__ = error
            _log.error("request %d failed", taken.number, exc_info=error)
            error = told
        self._finish(taken, FinishReason.ERROR, Update(""), error)

    def _finish(
        self,
        taken: TakenRequest,
        finish: FinishReason,
        update: Update,
        error: EsdllmError | None = None,
        steps: int = 0,
    ) -> None:
        """Free a request's slot, and tell of its end."""
        del self._requests[taken.number]
        if taken.slot in self._slots.taken:
            steps = self._slots.seat(taken.slot).effort.steps
            self._slots.release(taken.slot)
        with self._lock:
            now = self._count_time()
            if taken.slot is None:
                self._scheduler.cancel(taken.number)
            else:
                self._scheduler.released(taken.slot)
                del self._seated[taken.slot]
            self._finished[finish] += 1
            self._counts["prompt_tokens"] += taken.prompt_tokens
            self._counts["generation_tokens"] += taken.generated
        if not taken.told_as_it_comes:
            update = taken.telling.whole()
        self._tell(taken, update._replace(completion=taken.completed(finish, steps, now, error)))

    def _tell(self, taken: TakenRequest, update: Update) -> None:
        try:
            taken.listener(update)
        except Exception:
            _log.exception("the listener of request %d failed; the request is cancelled", taken.number)
            if update.completion is None:
                self._finish(taken, FinishReason.CANCELLED, Update(""))
