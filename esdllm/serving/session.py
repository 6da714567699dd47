"""A session: requests from any thread, decoded in slots by a thread of its own.

    with Session.open(engine, slots=8) as session:
        ticket = session.submit(Request(prompt="Sort 3 1 2."), print)

Every answer is that of `Engine.generate` for its prompt alone, whatever comes and goes beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from threading import Condition, Thread
from types import TracebackType

from esdllm.errors import ClosedError
from esdllm.foreign import reason
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.engine import Engine
from esdllm.serving.intake import Intake, TakenRequest
from esdllm.serving.requests import FinishReason, Request, Update
from esdllm.serving.scheduler import Admission, InOrder, Policy, RefreshesTogether, Scheduler
from esdllm.serving.state import SessionState
from esdllm.serving.worker import Worker

__all__ = ["Session", "Ticket"]

_log = logging.getLogger(__name__)


class Ticket:
    """A request that was taken."""

    def __init__(self, session: Session, taken: TakenRequest) -> None:
        self._session, self._taken = session, taken

    @property
    def number(self) -> int:
        """The request's number, from 0."""
        return self._taken.number

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self._taken.prompt_tokens

    def cancel(self) -> None:
        """Let the request end within a step; of one that has ended nothing changes."""
        self._session.cancel(self.number)


class Session:
    """Slots over an engine, a queue before them, and the thread that decodes. `open` makes one; close it, or use it as a context.

    The engine is the session's while it is open: what else asks it for a run waits, or lets the session wait.
    """

    def __init__(self, engine: Engine, length: int, worker: Worker, intake: Intake) -> None:
        self.engine = engine
        self.length = length
        """L, the columns of a slot"""
        self._worker, self._intake = worker, intake
        self._changed = Condition()
        self._cancelled: set[int] = set()
        self._draining = self._closing = False
        self._thread = Thread(target=self._run, name="esdllm session", daemon=True)

    @classmethod
    def open(
        cls,
        engine: Engine,
        *,
        slots: int,
        length: int | None = None,
        max_queue: int = 64,
        policy: Policy | None = None,
        admission: Admission | None = None,
        catalogue: Catalogue | None = None,
    ) -> Session:
        """Return a session whose thread runs, with `slots` of `length` columns; as many as the model's context if not told.

        `policy` says whose steps go first, `admission` who takes a slot that is free; if not told,
        refreshes are made together, and requests admitted in order.

        Raises:
            InputError: no slot, or one longer than the model's context; a queue of negative length.
            UnavailableError: the cache store cannot hold the slots; gives all its reasons.
            ConfigError: the configuration has observers.
        """
        length = engine.model.spec.context if length is None else length
        scheduler = Scheduler(slots, max_queue, policy or RefreshesTogether(), admission or InOrder())
        worker = Worker(engine, engine.slots(slots, length), scheduler)
        session = cls(engine, length, worker, Intake(engine, length, catalogue or Catalogue.load()))
        session._thread.start()
        return session

    def submit(self, request: Request, listener: Callable[[Update], None]) -> Ticket:
        """Take a request, of which `listener` is told in the decoding thread; it must return at once.

        Raises:
            InputError: the prompt cannot be decoded, or does not fit into a slot; says why.
            ConfigError: an unknown setting, or one that cannot differ between requests; names it.
            QueueFullError: as many requests wait as may.
            ClosedError: the session takes no more.
        """
        taken = self._intake.take(request, listener)
        with self._changed:
            if self._draining or not self._thread.is_alive():
                raise ClosedError("this session takes no more requests: it is draining or closed")
            self._worker.offer(taken)
            self._changed.notify_all()
        return Ticket(self, taken)

    def cancel(self, number: int) -> None:
        """Let a request end within a step."""
        with self._changed:
            self._cancelled.add(number)
            self._changed.notify_all()

    def state(self) -> SessionState:
        """Return what the session does, and what it has done since it was opened."""
        with self._changed:
            return self._worker.state(self._draining)

    def drain(self) -> None:
        """Take no more requests; those that were taken are decoded, then the session closes by itself."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the session is closed, `timeout` seconds at most; return whether it is."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def close(self, timeout: float | None = None) -> bool:
        """End all requests, and return whether the session was closed within `timeout` seconds.

        Requests that were not complete end with `FinishReason.ERROR` and a ClosedError.
        """
        with self._changed:
            self._draining = self._closing = True
            self._changed.notify_all()
        return self.join(timeout)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _run(self) -> None:
        why = "the session was closed"
        try:
            while self._take_in():
                self._worker.tick()
        except BaseException as error:  # which nobody waits for in this thread
            _log.critical("the session ends, since its thread failed", exc_info=error)
            why = f"the session ended by a fault of its own, {reason(error)},"
        finally:
            with self._changed:
                self._draining = True
            self._worker.close(ClosedError(f"{why} before this answer was complete"))

    def _take_in(self) -> bool:
        """Take what has come from other threads, waiting where there is nothing to do; return whether to go on."""
        with self._changed:
            while not (self._worker.busy or self._draining):
                self._changed.wait()
            cancelled, self._cancelled = self._cancelled, set()
            closing = self._closing
        for number in cancelled:
            self._worker.end(number, FinishReason.CANCELLED)
        return not closing and (self._worker.busy or not self._draining)
