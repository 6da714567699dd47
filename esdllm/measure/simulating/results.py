"""What came of simulated traffic: how long people waited, and how busy the slots were."""

from __future__ import annotations

from typing import Any, NamedTuple

import attrs

from esdllm.measure.benchmarking.serving import Percentiles

__all__ = ["Served", "Simulated"]


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
    queued: Percentiles | None
    """seconds to a slot; None if nobody was answered, as below"""
    first: Percentiles | None
    """seconds to the first committed token"""
    latency: Percentiles | None
    """seconds to the whole answer"""

    @property
    def goodput(self) -> float:
        """Answers per second within the time that was allowed."""
        return self.good / self.seconds if self.seconds else 0.0

    @property
    def throughput(self) -> float:
        """Answer tokens per second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {**attrs.asdict(self), "goodput": self.goodput, "throughput": self.throughput}
