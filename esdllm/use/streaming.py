"""Answers while they are decoded: the run in a thread of its own, an event a step, nobody waiting in vain.

with pipe.stream("Who are you?") as stream:
    for event in stream:
        print(event.new, end="")
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterator, Sequence
from threading import Condition, Thread, current_thread
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esdllm.interfaces import TextCodec
from esdllm.runtime.engine import Engine
from esdllm.use.answers import Answer
from esdllm.use.frames import Frame, so_far, spelled
from esdllm.use.unfolding import StreamEvent, Unfolding
from esdllm.views import ModelSpec, StepRecord

__all__ = ["Stream", "StreamEvent", "feed"]

_GAP = "…"


class _Last(NamedTuple):
    """The end of a stream."""

    event: StreamEvent
    answer: Answer


class _StoppedError(Exception):
    """Ends a run whose consumer is gone."""


class _Handover:
    """A place for one item, between a run and its consumer: each waits for the other, until one of them closes it."""

    def __init__(self) -> None:
        self.waited = 0.0
        """seconds that the run waited for its consumer"""
        self.closed = False
        self._ready = Condition()
        self._items: list[Any] = []

    def put(self, item: Any) -> None:
        """Leave an item as soon as the last one is taken; raise if nobody will take it."""
        started = time.perf_counter()
        with self._ready:
            self._ready.wait_for(lambda: self.closed or not self._items)
            if self.closed:
                raise _StoppedError
            self._items.append(item)
            self._ready.notify_all()
        self.waited += time.perf_counter() - started

    def get(self) -> Any:
        """Return the next item; None once closed."""
        with self._ready:
            self._ready.wait_for(lambda: self.closed or bool(self._items))
            item = self._items.pop() if self._items else None
            self._ready.notify_all()
            return item

    def close(self) -> None:
        """Let nobody wait any longer."""
        with self._ready:
            self.closed = True
            self._items.clear()
            self._ready.notify_all()


class _Writer:
    """A step observer that hands over what unfolds."""

    def __init__(self, codec: TextCodec | None, stop_ids: Sequence[int], most: int | None, handover: _Handover) -> None:
        self.unfolding, self._handover = Unfolding(codec, stop_ids, most), handover

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Take the canvas."""
        self.unfolding.start(tokens, spec)

    def step(self, record: StepRecord) -> None:
        """Hand an event over."""
        self._handover.put(self.unfolding.step(record))

    def end(self) -> None:
        """The result, which is still to come, ends the stream."""


class Stream(Iterator[StreamEvent]):
    """An answer being decoded: an iterator of events, and a context that stops the run when it is left.

    The run is at most one step ahead of whoever iterates. Closing the stream, leaving its context or dropping it stops the
    run within a step and frees its thread; until then the engine has no time for another. What the run raises is raised
    here. `answer` is what there is so far.
    """

    def __init__(self, engine: Engine, prompt: Any, shown: str | None, **options: Any) -> None:
        self._prompt, self._codec, self._handover = shown, engine.model.codec, _Handover()
        most = None if options.get("infill") else engine.config.gen_length
        self._writer = _Writer(self._codec, engine.model.stop_ids, most, self._handover)
        self._started = time.perf_counter()
        self._answer: Answer | None = None
        arguments = (engine, prompt, shown, options, self._writer, self._handover)
        self._thread = Thread(target=_run, args=arguments, name="esdllm stream", daemon=True)
        engine.turn.take()
        engine.turn.lend(self._thread)
        try:
            self._thread.start()
        except BaseException:
            engine.turn.give_back()
            raise
        self._finalizer = weakref.finalize(self, _end, self._handover, self._thread)

    def __repr__(self) -> str:
        return f"Stream({self.answer!r:.150})"

    @property
    def answer(self) -> Answer:
        """The answer, once the stream has ended; before, and of a stream that was closed, what is decided, not complete."""
        return self._answer or self._so_far()

    @property
    def frame(self) -> Frame | None:
        """The canvas after the last step; None before the run."""
        return self._writer.unfolding.frame

    def _so_far(self) -> Answer:
        frame = self.frame
        if frame is None:
            return Answer(self._prompt, "", (), 0, 0.0, complete=False)
        tokens = so_far(frame, self._writer.unfolding.stops)
        text = spelled(self._codec, tokens, _GAP, each=False) if self._codec else ""
        kept = tuple(token for token in tokens if token >= 0)
        return Answer(self._prompt, text, kept, frame.forwards, self._seconds, complete=False)

    @property
    def _seconds(self) -> float:
        return max(0.0, time.perf_counter() - self._started - self._handover.waited)

    def __next__(self) -> StreamEvent:
        item = self._handover.get()
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            self.close()
            raise item
        if isinstance(item, _Last):
            self._answer = item.answer
            self.close()
            return item.event
        found: StreamEvent = item
        return found

    def close(self) -> None:
        """Stop the run, within a step, and wait until its thread is free."""
        self._finalizer()
        self._answer = self.answer

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _end(handover: _Handover, thread: Thread) -> None:
    handover.close()
    if thread is not current_thread():  # the collector may find a stream from within its own run
        thread.join()


def _run(
    engine: Engine,
    prompt: Any,
    shown: str | None,
    options: dict[str, Any],
    writer: _Writer,
    handover: _Handover,
) -> None:
    """Decode, handing over events, and at the end the last of them with the answer, or what was raised."""
    last: Any
    try:
        result = engine.generate(prompt, observers=[writer], **options)
        text = result.text[0] if result.text else ""
        tokens, seconds = tuple(result.answers[0]), max(0.0, result.seconds - handover.waited)
        answer = Answer(shown, text, tokens, result.forwards, seconds)
        last = _Last(writer.unfolding.last(tokens, text), answer)
    except _StoppedError:
        return
    except BaseException as error:
        last = error
    finally:
        engine.turn.give_back()
    try:
        handover.put(last)
    except _StoppedError:
        return


def feed(stream: Stream, streamer: Any, prompt: Sequence[int]) -> Answer:
    """Return a stream's answer, shown to a streamer as transformers' generate does.

    `put` gets the prompt's tokens, then the answer's, in order and for good; `put_draft`, where there is one, what comes
    after them as things stand; `end` nothing. All tokens are (1, n) int64 on the host.
    """
    streamer.put(torch.tensor([list(prompt)]))
    put = 0
    with stream:
        for event in stream:
            if len(event.settled) > put:
                streamer.put(torch.tensor([event.settled[put:]]))
                put = len(event.settled)
            if event.drafted and hasattr(streamer, "put_draft"):
                streamer.put_draft(torch.tensor([event.drafted]))
    streamer.end()
    return stream.answer
