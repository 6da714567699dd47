"""Requests sent to a target as a load says, and what was heard of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Protocol

import attrs

from esdllm.errors import InputError
from esdllm.measure.benchmarking.serving.traffic import Load, Wanted

__all__ = ["Answered", "Pending", "Target", "drive"]


@attrs.frozen(kw_only=True)
class Answered:
    """What became of one request. Times are seconds since the first came."""

    asked: float
    """when it came; in an open loop when it should have, so that a slow sender hides no waiting"""
    first: float | None = None
    """when its first settled text was there; None if none was"""
    done: float
    """when its end was"""
    tokens: int = 0
    """of the answer"""
    queued: float | None = None
    """seconds that it waited for a slot; None if the target does not tell"""
    busy: float | None = None
    """seconds that it needed a slot; likewise"""
    error: str | None = None
    """the kind of what went wrong"""

    @property
    def latency(self) -> float:
        """Seconds to its end."""
        return self.done - self.asked

    @property
    def first_latency(self) -> float | None:
        """Seconds to its first settled text."""
        return None if self.first is None else self.first - self.asked


class Pending:
    """A request under way: its target notes here what is heard of it, from one thread at a time."""

    def __init__(self, asked: float, clock: Callable[[], float], ended: SimpleQueue[Answered]) -> None:
        self._asked, self._clock, self._ended = asked, clock, ended
        self._first: float | None = None

    def text(self) -> None:
        """Note that settled text is there."""
        if self._first is None:
            self._first = self._clock()

    def end(
        self,
        *,
        tokens: int = 0,
        queued: float | None = None,
        busy: float | None = None,
        error: str | None = None,
    ) -> None:
        """Note that it ended, and how; the arguments are as in `Answered`."""
        self._ended.put(
            Answered(
                asked=self._asked,
                first=self._first,
                done=self._clock(),
                tokens=tokens,
                queued=queued,
                busy=busy,
                error=error,
            )
        )


class Target(Protocol):
    """What requests are sent to."""

    def send(self, wanted: Wanted, pending: Pending) -> None:
        """Send one request and return at once; what is heard of it, refusals too, goes to `pending`."""


def drive(
    target: Target, wanted: Sequence[Wanted], load: Load, seed: int = 0, tell: Callable[[], None] = lambda: None
) -> list[Answered]:
    """Return what became of every request, in the order in which they ended. `tell` is called after each.

    Raises:
        InputError: there is no request.
    """
    if not wanted:
        raise InputError("no request; give at least one")
    ended: SimpleQueue[Answered] = SimpleQueue()
    started = time.perf_counter()

    def clock() -> float:
        return time.perf_counter() - started

    def heard() -> Answered:
        found = ended.get()
        tell()
        return found

    if load.concurrency is None:
        for at, one in zip(load.arrivals(len(wanted), seed), wanted, strict=True):
            time.sleep(max(0.0, at - clock()))
            target.send(one, Pending(at, clock, ended))
        return [heard() for _ in wanted]
    found = []
    for number, one in enumerate(wanted):
        if number >= load.concurrency:
            found.append(heard())
        target.send(one, Pending(clock(), clock, ended))
    return found + [heard() for _ in range(len(wanted) - len(found))]
