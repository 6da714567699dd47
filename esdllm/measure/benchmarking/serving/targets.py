"""What requests are sent to within this process: a session, whose slots are refilled at once, and static batches.

Both decode with the same engine, so that what differs is when rows come and go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Thread
from time import perf_counter

import attrs

from esdllm.errors import EsdllmError, QueueFullError
from esdllm.measure.benchmarking.serving.driving import Pending
from esdllm.measure.benchmarking.serving.traffic import Wanted
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.engine import Engine
from esdllm.serving.requests import FinishReason, Request, Update
from esdllm.serving.session import Session

__all__ = ["SessionTarget", "StaticBatches", "static_batches"]

_SOUND = (FinishReason.STOP, FinishReason.LENGTH)


@attrs.frozen(eq=False)
class SessionTarget:
    """A session in this process."""

    session: Session
    whole: bool = False
    """whether answers are decoded to their full length, whatever they say; then all of it counts as their tokens"""

    def send(self, wanted: Wanted, pending: Pending) -> None:
        """Submit a request."""
        settings = {"gen_length": wanted.max_tokens}
        request = Request(prompt=wanted.prompt, seed=wanted.seed, settings=settings, stream=True)
        try:
            self.session.submit(request, partial(_hear, pending, wanted.max_tokens if self.whole else None))
        except EsdllmError as error:
            pending.end(error=_kind(error))


def _hear(pending: Pending, whole: int | None, update: Update) -> None:
    if update.new or update.tokens:
        pending.text()
    if (completion := update.completion) is not None:
        pending.end(
            tokens=len(completion.tokens) if whole is None else whole,
            queued=completion.queued,
            busy=completion.decoding,
            error=None if completion.finish_reason in _SOUND else completion.finish_reason.value,
        )


def _kind(error: Exception) -> str:
    return "queue full" if isinstance(error, QueueFullError) else type(error).__name__


class StaticBatches:
    """Batches made of what has come when the one before has ended, each as long as its longest answer.

    All answers of a batch are there at its end. A row counts as busy for as much of the batch's time as its own answer's share
    of the longest. Where decoding does not stop early, all of an answer's length counts as its tokens.
    """

    def __init__(self, engine: Engine, size: int, catalogue: Catalogue) -> None:
        self._engine, self._size, self._catalogue = engine, size, catalogue
        self._came: SimpleQueue[tuple[Wanted, Pending, float] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, name="esdllm static batches", daemon=True)
        self._thread.start()

    def send(self, wanted: Wanted, pending: Pending) -> None:
        """Let a request wait for its batch."""
        self._came.put((wanted, pending, perf_counter()))

    def close(self) -> None:
        """End with the batch that is being decoded; what waits for another is never answered."""
        with suppress(Empty):
            while True:
                self._came.get_nowait()
        self._came.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._came.get()) is not None:
            batch = [first]
            while len(batch) < self._size and not self._came.empty():
                if (one := self._came.get()) is None:
                    self._came.put(None)
                    break
                batch.append(one)
            self._decode(batch)

    def _decode(self, batch: Sequence[tuple[Wanted, Pending, float]]) -> None:
        longest = max(wanted.max_tokens for wanted, _, _ in batch)
        began = perf_counter()
        try:
            with self._decoding(longest) as engine:
                found = engine.generate(
                    [wanted.prompt for wanted, _, _ in batch], seed=[wanted.seed for wanted, _, _ in batch]
                )
        except EsdllmError as error:
            for _, pending, _ in batch:
                pending.end(error=_kind(error))
            return
        took = perf_counter() - began
        for (wanted, pending, came), answer in zip(batch, found.answers, strict=True):
            pending.text()
            length, share = len(answer) if self._engine.config.early_stop else longest, wanted.max_tokens / longest
            tokens = min(length, wanted.max_tokens)
            pending.end(tokens=tokens, queued=began - came, busy=took * share)

    @contextmanager
    def _decoding(self, gen_length: int) -> Iterator[Engine]:
        """Lend an engine over the same model whose answers have that length."""
        engine = self._engine
        components = engine.components.varied({"gen_length": gen_length}, self._catalogue)
        lent = Engine(engine.model, components.config, components, engine.step_function)
        try:
            yield lent
        finally:
            lent.close()


@contextmanager
def static_batches(engine: Engine, size: int, catalogue: Catalogue) -> Iterator[StaticBatches]:
    """Lend static batches of at most `size` rows, which end with it."""
    target = StaticBatches(engine, size, catalogue)
    try:
        yield target
    finally:
        target.close()
