"""A session whose answers are known beforehand, for what a real one does seldom: fill its queue, fail, get stuck."""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from threading import Event, Thread
from typing import Any

import attrs

from esdllm import Engine
from esdllm.errors import ClosedError, EsdllmError, QueueFullError
from esdllm.runtime.prompts import prepare
from esdllm.serving.requests import Completion, FinishReason, Request, Update
from esdllm.use.frames import Frame

TEXT = " one two three four five six seven eight nine ten"


@attrs.define
class StandInState:
    running: int = 0
    waiting: int = 0
    slots: int = 4
    forwards: int = 0
    refreshes: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    stuck_for: float = 0.0
    busy: float = 0.0
    draining: bool = False
    finished: Mapping[FinishReason, int] = attrs.field(factory=dict)


@attrs.define(eq=False)
class StandInTicket:
    number: int
    request: Request
    prompt_tokens: int
    cancelled: Event = attrs.field(factory=Event)
    ended: Event = attrs.field(factory=Event)

    def cancel(self) -> None:
        self.cancelled.set()


@attrs.define(eq=False)
class StandIn:
    """Answers each request with the words of `text`, one an update, `pause` seconds apart, from a thread of its own."""

    engine: Engine
    text: str = TEXT
    pause: float = 0.0
    most: int = 8
    length: int = 1024
    fails: EsdllmError | None = None
    """what every answer ends with after two words"""
    refuses: Exception | None = None
    """what `submit` raises"""
    opened: Event = attrs.field(factory=Event)
    """answers begin once it is set"""
    finished: Counter[FinishReason] = attrs.field(factory=Counter)
    tickets: list[StandInTicket] = attrs.field(factory=list)
    told: StandInState = attrs.field(factory=StandInState)
    draining: bool = False
    dead: bool = False
    """whether its thread has ended"""
    ends: Completion | None = None
    """what every answer ends with, in place of its own"""
    shown: Frame | None = None
    """the canvas that is told to who wants drafts"""

    def __attrs_post_init__(self) -> None:
        self.opened.set()

    def submit(self, request: Request, listener: Callable[[Update], None]) -> StandInTicket:
        if self.refuses is not None:
            raise self.refuses
        if self.draining:
            raise ClosedError("no new request is taken")
        if self.busy >= self.most:
            raise QueueFullError(f"{self.most} requests wait already", retry_after=1.2)
        length = 0 if request.infill else self.length_of(request)
        prepared = prepare(self.engine.model, [request.prompt], None, length, request.infill, request.chat)  # type: ignore[list-item]
        ticket = StandInTicket(len(self.tickets), request, prepared.starts[0])
        self.tickets.append(ticket)
        Thread(target=self._answer, args=(ticket, listener), daemon=True).start()
        return ticket

    def length_of(self, request: Request) -> int:
        return int(request.settings.get("gen_length", self.engine.config.gen_length))

    @property
    def busy(self) -> int:
        return sum(not ticket.ended.is_set() for ticket in self.tickets)

    def state(self) -> StandInState:
        return attrs.evolve(self.told, running=self.busy, draining=self.draining, finished=dict(self.finished))

    def drain(self) -> None:
        self.draining = True

    def join(self, timeout: float | None = None) -> bool:
        return self.dead

    def close(self, timeout: float | None = None) -> bool:
        self.drain()
        self.fails = ClosedError("the session was closed before this answer was complete")
        for ticket in self.tickets:
            ticket.cancel()
        return True

    def _answer(self, ticket: StandInTicket, listener: Callable[[Update], None]) -> None:
        while not (self.opened.wait(0.01) or ticket.cancelled.is_set()):
            pass
        started, said = time.monotonic(), ""
        tokens: list[int] = []
        reason, error = FinishReason.STOP, None
        for word, ids in self._words(ticket.request):
            if ticket.cancelled.wait(self.pause):
                reason = FinishReason.CANCELLED if self.fails is None else FinishReason.ERROR
                error = self.fails
                break
            if self.fails is not None and len(tokens) >= 2:
                reason, error = FinishReason.ERROR, self.fails
                break
            if len(tokens) + len(ids) > self.length_of(ticket.request):
                reason = FinishReason.LENGTH
                break
            said, tokens = said + word, [*tokens, *ids]
            update = Update(word, tokens=tuple(ids), logprobs=(-0.5,) * len(ids) if ticket.request.logprobs else ())
            if ticket.request.stream:
                listener(update._replace(draft="perhaps", frame=self.shown) if ticket.request.drafts else update)
        taken = time.monotonic() - started
        self.finished[reason] += 1
        ticket.ended.set()
        logprobs = (-0.5,) * len(tokens) if ticket.request.logprobs else ()
        completion = Completion(
            reason, said, tuple(tokens), logprobs, ticket.prompt_tokens, len(tokens), 0.0, taken, error
        )
        last = Update("", completion=self.ends or completion)
        listener(last if ticket.request.stream else last._replace(new=said, tokens=tuple(tokens), logprobs=logprobs))

    def _words(self, request: Request) -> Iterator[tuple[str, list[int]]]:
        codec = self.engine.model.codec
        assert codec is not None
        for word in self.text.split(" ")[1:]:
            yield f" {word}", codec.encode(f" {word[:9]}")[:1]


def chat(**over: Any) -> dict[str, Any]:
    """Return a body of /v1/chat/completions; None leaves a field out."""
    body = {"model": "small", "messages": [{"role": "user", "content": "What is 2 + 3?"}], "max_tokens": 16, **over}
    return {name: value for name, value in body.items() if value is not None}


def begun(address: str, path: str, body: Any) -> socket.socket:
    """Return a connection on which a request was sent, to be left."""
    host, port = address.removeprefix("http://").split(":")
    at, sent = socket.create_connection((host, int(port))), json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(sent)}\r\n\r\n"
    at.sendall(head.encode() + sent)
    return at


def until(done: Callable[[], object], seconds: float = 5.0) -> None:
    """Return as soon as something is so."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.005)
