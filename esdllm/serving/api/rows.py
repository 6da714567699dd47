"""The requests of one call: submitted together, heard of in the event loop, cancelled together."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from threading import Lock

from esdllm.serving.api.metrics import Metrics
from esdllm.serving.requests import Completion, Request, Update
from esdllm.serving.session import Session, Ticket

__all__ = ["Rows"]


class Rows:
    """The requests of one call. What nobody has read yet of a row is kept as one update, however slow the reader is."""

    def __init__(self, session: Session, requests: Sequence[Request], metrics: Metrics) -> None:
        self.requests = requests
        self.unfinished = len(requests)
        """rows whose end `news` has not told yet"""
        self.completions: dict[int, Completion] = {}
        """of the rows that ended"""
        self.tokens = 0
        """settled so far, over all rows"""
        self.first: float | None = None
        """seconds until the first was, of a stream"""
        self._session, self._metrics, self._started = session, metrics, time.monotonic()
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        self._unread: dict[int, Update] = {}
        self._tickets: list[Ticket] = []
        self._lock, self._gone = Lock(), False
        self._heard: set[int] = set()

    def submit(self) -> None:
        """Submit all, or none; reads texts, so call it in a thread of its own.

        Raises:
            EsdllmError: as `Session.submit`.
        """
        try:
            for index, request in enumerate(self.requests):
                ticket = self._session.submit(request, partial(self._hear, index))
                with self._lock:
                    self._tickets.append(ticket)
                    if self._gone:
                        ticket.cancel()
        except BaseException:
            self.cancel()
            raise

    def cancel(self) -> None:
        """Let every row that still runs end, also one that is being submitted."""
        with self._lock:
            self._gone = True
            tickets = list(self._tickets)
        for ticket in tickets:
            ticket.cancel()

    def prompt_tokens(self, each: int) -> int:
        """Return the tokens of the prompts, of which `each` is that of so many rows."""
        with self._lock:
            return sum(ticket.prompt_tokens for ticket in self._tickets[::each])

    async def news(self, patience: float | None = None) -> list[tuple[int, Update]]:
        """Return rows with what is new of each, as soon as there is anything; nothing after `patience` seconds without."""
        late = None if patience is None else self._loop.call_later(patience, self._news.set)
        try:
            await self._news.wait()  # not in wait_for, which until Python 3.12 may lose that its task was cancelled
        finally:
            if late is not None:
                late.cancel()
        self._news.clear()
        unread, self._unread = self._unread, {}
        self.unfinished -= sum(update.completion is not None for update in unread.values())
        return list(unread.items())

    def _hear(self, index: int, update: Update) -> None:
        """Take an update, in the decoding thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._take, index, update)

    def _take(self, index: int, update: Update) -> None:
        seconds = time.monotonic() - self._started
        self.tokens += len(update.tokens)
        if update.tokens and self.requests[index].stream and index not in self._heard:
            self._heard.add(index)
            self.first = seconds if self.first is None else self.first
            self._metrics.first_token(seconds)
        if update.completion is not None:
            self.completions[index] = update.completion
            self._metrics.ended(update.completion, seconds)
        self._unread[index] = _joined(self._unread[index], update) if index in self._unread else update
        self._news.set()


def _joined(old: Update, new: Update) -> Update:
    """Return two updates as one; of what is not settled, the last that was told."""
    return new._replace(
        new=old.new + new.new,
        frame=new.frame or old.frame,
        tokens=old.tokens + new.tokens,
        logprobs=old.logprobs + new.logprobs,
    )
