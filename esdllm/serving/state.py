"""What a session does, and what it has done."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from esdllm.serving.requests import FinishReason

__all__ = ["SessionState"]


@attrs.frozen
class SessionState:
    """A session at one moment; counters are since it was opened."""

    slots: int
    running: int
    """requests in slots"""
    waiting: int
    """requests that wait for one"""
    draining: bool
    """whether no more requests are taken"""
    stuck_for: float
    """seconds since the step began that is being made; 0 between steps"""
    seconds: float
    busy_seconds: float
    """summed over slots, seconds for which each was taken"""
    forwards: int
    """steps made"""
    refreshes: int
    """of which refreshes"""
    row_steps: int
    """summed over steps, the rows that made them together"""
    prompt_tokens: int
    """of requests that have ended, as all that follows"""
    generation_tokens: int
    finished: Mapping[FinishReason, int]
    """requests, by how they ended"""

    @property
    def busy(self) -> float:
        """The share of slots that was taken, on average."""
        return self.busy_seconds / (self.slots * self.seconds) if self.seconds else 0.0
