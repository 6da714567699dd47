"""What a server is: a session, its name and keys, its limits, and where its log goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs

from esdllm.serving.api.metrics import Metrics
from esdllm.serving.api.writing import Speller
from esdllm.serving.session import Session

__all__ = ["RequestLimits", "Service"]


@attrs.frozen(kw_only=True)
class RequestLimits:
    """How much, and for how long."""

    body: int = 4 * 2**20
    """bytes of a request's body"""
    body_seconds: float = 30.0
    """in which a body must come"""
    request_seconds: float | None = None
    """after which an answer ends with what is settled; None: never"""
    stuck_seconds: float = 120.0
    """without a step that is due, after which the server says that it is not ready"""
    silent_seconds: float = 15.0
    """after which a stream that has nothing to say sends a comment, so that no proxy takes it for dead"""


def _no_log(_: Mapping[str, Any]) -> None:
    """Keep nothing."""


@attrs.frozen(kw_only=True, eq=False)
class Service:
    """All that the routes share."""

    session: Session
    model: str
    """the name that requests ask for"""
    keys: tuple[str, ...] = attrs.field(default=(), repr=False)
    """of which a request must bring one; none: anybody may ask"""
    hosts: tuple[str, ...] = ()
    """names by which it may be asked, so that no web page reaches it by a name of its own; none: any"""
    origins: tuple[str, ...] = ()
    """web pages that may ask, besides our own; "*" is all"""
    ignored: tuple[str, ...] = ()
    """fields of bodies that are left aside, where they would be refused"""
    limits: RequestLimits = RequestLimits()
    log: Callable[[Mapping[str, Any]], None] = _no_log
    """is given what is logged of a request"""
    log_text: bool = False
    """whether that has prompts and answers"""
    under_way: set[object] = attrs.field(init=False, factory=set, repr=False)
    """a member for each request that is not answered yet"""
    created: int = attrs.field(init=False, factory=lambda: int(time.time()))
    metrics: Metrics = attrs.field(init=False)
    speller: Speller = attrs.field(init=False)

    @metrics.default
    def _new_metrics(self) -> Metrics:
        return Metrics(self.session, self.model)

    @speller.default
    def _new_speller(self) -> Speller:
        return Speller(self.session.engine.model.codec)

    def condition(self) -> str:
        """Return ready, draining, or stuck."""
        state = self.session.state()
        if state.draining:
            return "draining"
        return "stuck" if state.stuck_for > self.limits.stuck_seconds else "ready"
