"""What a benchmark of serving found: what became of every request, and what follows from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import attrs
import numpy as np

from esdllm.measure.benchmarking.serving.driving import Answered
from esdllm.measure.benchmarking.serving.remote import Looked
from esdllm.measure.benchmarking.serving.traffic import Load

__all__ = ["FORMAT", "STATIC", "Percentiles", "ServeReport", "ServeRun", "percentiles"]

FORMAT = "esdllm-bench-serve-1"
"""What the JSON calls itself."""
STATIC = "static batches"
"""What the target is called that others are compared with."""


@attrs.frozen
class Percentiles:
    """Below which 50, 95 and 99 of a hundred values lie."""

    p50: float
    p95: float
    p99: float


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """Return the percentiles of values, interpolated between neighbours; None if there is none."""
    return Percentiles(*np.percentile(values, [50, 95, 99]).tolist()) if values else None


@attrs.frozen
class ServeRun:
    """One load on one target."""

    target: str
    """as tables call it"""
    load: Load
    slots: int | None
    """rows that it decodes side by side at most; None if it does not tell"""
    answered: tuple[Answered, ...]
    looks: tuple[Looked, ...] = ()
    """at its metrics, where the target is a server"""
    rows_a_step: float | None = None
    """rows that a denoising step was made of, on average; None if the target does not tell"""

    @property
    def sound(self) -> list[Answered]:
        """The requests without an error."""
        return [one for one in self.answered if one.error is None]

    @property
    def errors(self) -> Mapping[str, int]:
        """How many requests had an error, by kind."""
        return dict(sorted(Counter(one.error for one in self.answered if one.error is not None).items()))

    @property
    def seconds(self) -> float:
        """From the first request to the last end."""
        return max(one.done for one in self.answered) - min(one.asked for one in self.answered)

    @property
    def requests_a_second(self) -> float:
        """Requests answered without an error."""
        return len(self.sound) / self.seconds

    @property
    def tokens_a_second(self) -> float:
        """Tokens of answers without an error."""
        return sum(one.tokens for one in self.sound) / self.seconds

    @property
    def latency(self) -> Percentiles | None:
        """Seconds to an answer's end."""
        return percentiles([one.latency for one in self.sound])

    @property
    def first(self) -> Percentiles | None:
        """Seconds to an answer's first settled text."""
        return percentiles([first for one in self.sound if (first := one.first_latency) is not None])

    def within(self, limit: float) -> int:
        """Return how many requests were answered without an error in so many seconds."""
        return sum(one.latency <= limit for one in self.sound)

    def goodput(self, limit: float) -> float:
        """Return such requests per second."""
        return self.within(limit) / self.seconds

    def moments(self) -> list[Looked]:
        """Return how many rows ran and how many requests waited, from each moment to the next; of a target that tells."""
        known = [one for one in self.answered if one.queued is not None and one.busy is not None]
        if self.looks or not known:
            return list(self.looks)
        changes = [(0.0, 0, 0)]
        for one in known:
            start = one.asked + (one.queued or 0.0)
            changes += [(one.asked, 0, 1), (start, 1, -1), (start + (one.busy or 0.0), -1, 0)]
        changes.sort()
        sums = np.cumsum([change[1:] for change in changes], axis=0).tolist()
        most = self.slots or len(known)  # two clocks may let a row end a little after the next in its slot begins
        return [
            Looked(at, min(running, most), waiting)
            for (at, _, _), (running, waiting) in zip(changes, sums, strict=True)
        ]

    def slots_busy(self, backlog: bool = False) -> float | None:
        """Return the share of the slots' time in which they were needed; of `backlog`, while requests waited.

        None if the target does not tell, or nothing waited.
        """
        spans = [(now, then.at - now.at) for now, then in pairwise(self.moments()) if now.waiting > 0 or not backlog]
        time = sum(span for _, span in spans)
        if self.slots is None or time <= 0:
            return None
        return float(sum(now.running * span for now, span in spans) / time / self.slots)

    def derived(self, limit: float) -> dict[str, Any]:
        """Return what follows, as plain dicts for JSON."""
        return {
            "seconds": self.seconds,
            "requests": len(self.answered),
            "errors": self.errors,
            "requests_per_second": self.requests_a_second,
            "within_limit": self.within(limit),
            "goodput": self.goodput(limit),
            "tokens_per_second": self.tokens_a_second,
            "latency": _plain(self.latency),
            "first_text": _plain(self.first),
            "slots_busy": self.slots_busy(),
            "slots_busy_under_backlog": self.slots_busy(backlog=True),
        }


def _plain(found: Percentiles | None) -> dict[str, float] | None:
    return None if found is None else attrs.asdict(found)


@attrs.frozen
class ServeReport:
    """All runs of one benchmark."""

    model: str
    traffic: Mapping[str, Any]
    """where the requests come from, how many, and the seed"""
    within: float
    """seconds in which an answer is good"""
    environment: Mapping[str, Any]
    """versions and machine; of a server at an address, its address"""
    config: Mapping[str, Any] | None
    """the settings; None of a server at an address"""
    runs: tuple[ServeRun, ...]

    def compared(self) -> list[tuple[ServeRun, ServeRun]]:
        """Return each run with that of static batches under the same load, where there is one."""
        static = {run.load: run for run in self.runs if run.target == STATIC}
        return [(run, static[run.load]) for run in self.runs if run.load in static and run is not static[run.load]]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain dicts for JSON, with what follows beside what was measured."""
        return {
            "format": FORMAT,
            **{name: getattr(self, name) for name in ("model", "traffic", "within", "environment", "config")},
            "runs": [{**attrs.asdict(run), "derived": run.derived(self.within)} for run in self.runs],
            "over_static_batches": [
                {"load": run.load.name, "tokens_per_second": run.tokens_a_second / (static.tokens_a_second or 1.0)}
                for run, static in self.compared()
            ],
        }
