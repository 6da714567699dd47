"""What is told of one answer: text that is never taken back, with its tokens, as they settle."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from esdllm.checkpoints.loading import Model
from esdllm.serving.requests import Request, Update
from esdllm.serving.stopping import StopStrings
from esdllm.use.unfolding import StreamEvent, Unfolding
from esdllm.views import StepRecord

__all__ = ["Telling"]

_LEAST = 1e-30  # of a confidence, whose logarithm is told


class Telling:
    """One answer, from its canvas to its end. What is told follows from what was committed alone, so it can be told anew."""

    def __init__(self, model: Model, request: Request, canvas: Tensor, told: Telling | None = None) -> None:
        """Take a canvas (1, L) int64 on the host, without padding; `told` is what was told of it before it was begun anew."""
        self._codec, self._request = model.codec, request
        self._stops, self._unfolding = StopStrings(request.stop), Unfolding(model.codec, model.stop_ids)
        self._unfolding.start(canvas, model.spec)
        self._sure: dict[int, float] = {}
        self.text: str = told.text if told else ""
        """what was told"""
        self.tokens: tuple[int, ...] = told.tokens if told else ()
        """of which tokens"""
        self.stopped = False
        """whether the answer has ended before one of the stop strings"""

    def step(self, record: StepRecord) -> Update | None:
        """Return what is new after a step; None if nothing is that was asked for."""
        event = self._unfolding.step(record)
        self._note(event, record)
        if self._request.infill:  # its blanks are told when all of them are filled in
            return self._update("", (), event) if self._request.drafts else None
        update = self._update(*self._grown(event.text, event.settled), event)
        return update if self._request.drafts or update.new or update.tokens else None

    def last(self, text: str, tokens: Sequence[int]) -> Update:
        """Return what is new of a whole answer, without its `completion`."""
        new, more = self._grown(text, tuple(tokens), whole=True)
        return Update(new, tokens=more, logprobs=self.logprobs(len(self.tokens) - len(more)))

    def whole(self) -> Update:
        """Return all that was told, as one update."""
        return Update(self.text, tokens=self.tokens, logprobs=self.logprobs())

    def logprobs(self, start: int = 0) -> tuple[float, ...]:
        """Return the logarithms of the confidences of the tokens told, from one on; nothing unless asked for."""
        if not self._request.logprobs:
            return ()
        return tuple(math.log(max(_LEAST, self._sure.get(i, 1.0))) for i in range(start, len(self.tokens)))

    def _update(self, new: str, tokens: tuple[int, ...], event: StreamEvent) -> Update:
        shown = self._request.drafts and not self.stopped
        return Update(
            new,
            draft=event.draft if shown else "",
            frame=event.frame if shown else None,
            tokens=tokens,
            logprobs=self.logprobs(len(self.tokens) - len(tokens)),
        )

    def _note(self, event: StreamEvent, record: StepRecord) -> None:
        """Keep how sure the model was of what it committed."""
        if self._request.logprobs and record.guess_confidence is not None:
            confidence = record.guess_confidence[0, -len(event.frame.tokens) :].tolist()
            self._sure |= {position: confidence[position] for position in event.positions}

    def _grown(self, text: str, tokens: tuple[int, ...], whole: bool = False) -> tuple[str, tuple[int, ...]]:
        """Return what a text that has grown, or is `whole`, adds to what was told, and its tokens."""
        if self.stopped:
            return "", ()
        cut = self._stops.cut(text)
        self.stopped = cut is not None
        end = len(text) if whole else self._stops.certain(text)
        end = end if cut is None else cut
        grown = text[:end] if text.startswith(self.text) and end >= len(self.text) else self.text
        new, self.text = grown[len(self.text) :], grown
        known = len(self.tokens)
        self.tokens = tokens if end == len(text) else self._of(tokens, known, len(self.text))
        return new, self.tokens[known:]

    def _of(self, tokens: tuple[int, ...], least: int, length: int) -> tuple[int, ...]:
        """Return the first of `tokens`, at least so many of them, whose text is as long as what was told."""
        if self._codec is None:
            return tokens
        count = least
        while count < len(tokens) and len(self._codec.decode(tokens[:count]).rstrip("\ufffd")) < length:
            count += 1
        return tokens[:count]
