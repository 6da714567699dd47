"""What came of simulated traffic: how long people waited, and how busy the slots were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import attrs

__all__ = ["Served", "Simulated", "Waits", "waits"]


class Served(NamedTuple):
    """A request that was answered."""

    number: int
    at: float
    """seconds at which it came"""
    admitted: float
    first: float
    """seconds at which its first token was committed"""
    done: float
    answer: int
    """tokens"""
    useful: float
    """seconds until which its slot held something that was not decided"""


class Waits(NamedTuple):
    """Seconds, of the half, of 95 % and of 99 % of the requests that waited no longer."""

    p50: float
    p95: float
    p99: float


def waits(seconds: Sequence[float]) -> Waits:
    """Return the percentiles of what was waited, each one of the values; 0 of none."""
    ordered = sorted(seconds)
    ranks = (max(0, -(-len(ordered) * percent // 100) - 1) for percent in (50, 95, 99))
    return Waits(*(ordered[rank] if ordered else 0.0 for rank in ranks))


@attrs.frozen
class Simulated:
    """What came of traffic, under one way of serving."""

    name: str
    requests: int
    """that came"""
    refused: int
    """since the queue was full"""
    late: int
    """that ended by their deadline"""
    seconds: float
    """from the first arrival to the last answer"""
    tokens: int
    """of answers"""
    good: int
    """answers within the time that was allowed"""
    steps: int
    width: float
    """rows of a step, the mean"""
    refreshes: float
    """the share of steps that are refreshes"""
    busy: float
    """the share of slots that held something not decided, from the first arrival to the last admission"""
    queued: Waits
    first: Waits
    """to the first committed token"""
    latency: Waits
    """to the whole answer"""

    @property
    def goodput(self) -> float:
        """Answers a second within the time that was allowed."""
        return self.good / self.seconds if self.seconds else 0.0

    @property
    def throughput(self) -> float:
        """Answer tokens a second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        told = attrs.asdict(self, recurse=False)
        percentiles = {name: told[name]._asdict() for name in ("queued", "first", "latency")}
        return {**told, **percentiles, "goodput": self.goodput, "throughput": self.throughput}
