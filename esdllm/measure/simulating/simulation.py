"""Traffic, and machines that serve it, event by event. Nothing sleeps: a million requests cost seconds."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import count

import attrs

from esdllm.errors import InputError, QueueFullError
from esdllm.measure.benchmarking.serving import Load, percentiles
from esdllm.measure.simulating.replicas import Replica
from esdllm.measure.simulating.results import Served, Simulated
from esdllm.measure.simulating.traffic import Demand, WantedLengths

__all__ = ["Simulation", "TimeLimits"]


@attrs.frozen
class TimeLimits:
    """What an answer may take, in seconds from its request; None for no limit."""

    first: float | None = None
    """to the first token"""
    latency: float | None = None
    """to the whole answer"""
    timeout: float | None = None
    """until it is given up"""

    def holds(self, served: Served) -> bool:
        """Return whether an answer was in time to be of use."""
        first, latency = served.first - served.at, served.done - served.at
        return (self.first is None or first <= self.first) and (self.latency is None or latency <= self.latency)


@attrs.frozen
class Simulation:
    """Requests that come, before several machines: each goes to the one where fewest wait or are decoded."""

    load: Load
    """when they come"""
    asked: Sequence[WantedLengths]
    """what each asks for, in the order of their coming"""
    limits: TimeLimits = TimeLimits()
    seed: int = 0
    """of the times at which they come"""

    def run(self, name: str, replicas: Sequence[Replica], slots: int) -> Simulated:
        """Return what comes of it, on machines of so many `slots` each.

        Raises:
            InputError: there is no request, or no machine.
        """
        if not self.asked or not replicas:
            raise InputError(f"{len(self.asked)} requests before {len(replicas)} replicas; give at least one of each")
        events = _Events(self, replicas)
        events.run()
        return self._told(name, events, len(replicas) * slots)

    def _told(self, name: str, events: _Events, slots: int) -> Simulated:
        served, work = events.served, [replica.work for replica in events.replicas]
        begin, last = events.begin, max((one.admitted for one in served), default=0.0)
        used = sum(max(0.0, min(one.useful, last) - one.admitted) for one in served)
        steps = sum(one.steps for one in work)
        return Simulated(
            name,
            requests=events.issued,
            refused=events.refused,
            late=sum(len(one.late) for one in work),
            seconds=max((one.done for one in served), default=begin) - begin,
            tokens=sum(one.answer for one in served),
            good=sum(map(self.limits.holds, served)),
            steps=steps,
            width=sum(one.rows for one in work) / max(1, steps),
            refreshes=sum(one.refreshes for one in work) / max(1, steps),
            busy=used / (slots * (last - begin)) if last > begin else 0.0,
            queued=percentiles([one.admitted - one.at for one in served]),
            first=percentiles([one.first - one.at for one in served]),
            latency=percentiles([one.done - one.at for one in served]),
        )


class _Events:
    """What happens, in the order of time: requests come, and machines are done with what they began."""

    def __init__(self, simulation: Simulation, replicas: Sequence[Replica]) -> None:
        self.replicas, self.served, self.refused, self.issued = replicas, list[Served](), 0, 0
        self._simulation, self._order = simulation, count()
        self._heap: list[tuple[float, int, Demand | int]] = []
        self._working: set[int] = set()
        people, requests = simulation.load.concurrency, len(simulation.asked)
        self._again = people is not None
        for at in simulation.load.arrivals(requests, simulation.seed) if people is None else [0.0] * people:
            self._issue(at)
        self.begin = self._heap[0][0]

    def run(self) -> None:
        """Let everything happen."""
        while self._heap:
            now, touched = self._heap[0][0], set[int]()
            while self._heap and self._heap[0][0] == now:
                _, _, what = heapq.heappop(self._heap)
                if isinstance(what, Demand):
                    self._come(what, now, touched)
                else:
                    self._end(what, now, touched)
            for number in sorted(touched - self._working):
                self._start(number, now)

    def _come(self, demand: Demand, now: float, touched: set[int]) -> None:
        number = min(range(len(self.replicas)), key=lambda at: self.replicas[at].load)
        timeout = self._simulation.limits.timeout
        try:
            self.replicas[number].offer(demand, now, None if timeout is None else demand.at + timeout)
            touched.add(number)
        except QueueFullError as error:
            self.refused += 1
            if self._again:  # whoever waits for an answer asks once more
                self._push(now + max(error.retry_after, 1e-3), demand)

    def _end(self, number: int, now: float, touched: set[int]) -> None:
        answered = self.replicas[number].end(now)
        self._working.discard(number)
        touched.add(number)
        self.served += answered
        self._ask_again(len(answered), now)

    def _start(self, number: int, now: float) -> None:
        replica = self.replicas[number]
        late = len(replica.work.late)
        seconds = replica.start(now)
        self._ask_again(len(replica.work.late) - late, now)
        if seconds is not None:
            self._working.add(number)
            self._push(now + seconds, number)

    def _ask_again(self, people: int, now: float) -> None:
        if self._again:
            for _ in range(people):
                self._issue(now)

    def _issue(self, at: float) -> None:
        if self.issued < len(self._simulation.asked):
            self._push(at, Demand(self.issued, at, *self._simulation.asked[self.issued]))
            self.issued += 1

    def _push(self, at: float, what: Demand | int) -> None:
        heapq.heappush(self._heap, (at, next(self._order), what))
