"""What the routes ask of a session."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from esdllm.runtime.engine import Engine
from esdllm.serving.requests import Request, Update

__all__ = ["Session", "SessionState", "Ticket"]


class SessionState(Protocol):
    """How a session is."""

    running: int
    waiting: int
    slots: int
    forwards: int
    refreshes: int
    prompt_tokens: int
    generation_tokens: int
    stuck_for: float


class Ticket(Protocol):
    """A request that was taken."""

    def cancel(self) -> None:
        """Let it end."""


class Session(Protocol):
    """Many requests over one engine."""

    engine: Engine
    length: int

    def submit(self, request: Request, listener: Callable[[Update], None]) -> Ticket:
        """Take a request."""

    def state(self) -> SessionState:
        """Return how it is."""

    def drain(self) -> None:
        """Take no more."""
