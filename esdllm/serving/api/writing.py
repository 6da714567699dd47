"""How an endpoint writes what it answers: whole, and in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import isfinite
from typing import Any, Protocol

import attrs

from esdllm.interfaces import TextCodec
from esdllm.serving.requests import Completion, FinishReason, Update
from esdllm.use.blanks import Template, filled
from esdllm.use.frames import Frame

__all__ = ["Blanks", "ChatWriter", "InfillWriter", "Speller", "TextWriter", "Writer", "provisional"]

_LOWEST = -9999.0
"""what stands for the logarithm of nothing, as in OpenAI's answers"""


class Speller:
    """The text of single tokens."""

    def __init__(self, codec: TextCodec | None) -> None:
        self._codec, self.text = codec, lru_cache(2**16)(self._text)

    def _text(self, token: int) -> str:
        return self._codec.decode([token], keep_special=True) if self._codec else ""


class Writer(Protocol):
    """Writes one row's choice of an answer, or of the chunks of a stream."""

    prefix: str
    """of the answer's id"""
    whole_object: str
    chunk_object: str

    def opening(self) -> dict[str, Any] | None:
        """Return the choice of the first chunk; None if there is nothing to say before the text."""

    def chunk(self, update: Update) -> dict[str, Any]:
        """Return the choice of a chunk that adds to the text."""

    def closing(self, completion: Completion) -> dict[str, Any]:
        """Return the choice of the last chunk."""

    def whole(self, completion: Completion) -> dict[str, Any]:
        """Return the choice of an answer."""

    def added(self, update: Update) -> int:
        """Return how many tokens an update adds to those that were generated."""

    def generated(self, completion: Completion) -> int:
        """Return how many tokens were generated."""


class ChatWriter:
    """Writes as /v1/chat/completions does."""

    prefix, whole_object, chunk_object = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, index: int, speller: Speller, logprobs: bool) -> None:
        self._index, self._speller, self._logprobs = index, speller, logprobs

    def opening(self) -> dict[str, Any] | None:
        """Return the choice that says who speaks."""
        return self._choice("delta", {"role": "assistant", "content": ""}, None)

    def chunk(self, update: Update) -> dict[str, Any]:
        """Return the choice of a chunk that adds to the text."""
        delta = {"content": update.new} if update.new else {}
        return self._choice("delta", delta, None, update.tokens, update.logprobs)

    def closing(self, completion: Completion) -> dict[str, Any]:
        """Return the choice of the last chunk."""
        return self._choice("delta", {}, completion)

    def whole(self, completion: Completion) -> dict[str, Any]:
        """Return the choice of an answer."""
        message = {"role": "assistant", "content": completion.text, "refusal": None}
        return self._choice("message", message, completion, completion.tokens, completion.logprobs)

    def added(self, update: Update) -> int:
        """Return how many tokens an update adds to those that were generated."""
        return len(update.tokens)

    def generated(self, completion: Completion) -> int:
        """Return how many tokens were generated."""
        return len(completion.tokens)

    def _choice(
        self,
        what: str,
        said: dict[str, Any],
        completion: Completion | None,
        tokens: Sequence[int] = (),
        logprobs: Sequence[float] = (),
    ) -> dict[str, Any]:
        content = [self._token(*pair) for pair in zip(tokens, logprobs, strict=True)] if self._logprobs else []
        written = {"content": content, "refusal": None} if self._logprobs and (content or what == "message") else None
        return {"index": self._index, what: said, "logprobs": written, **_finish(completion)}

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._speller.text(token)
        whole = "\ufffd" not in text  # else it has part of a character's bytes
        written = {"token": text, "logprob": _finite(logprob), "bytes": list(text.encode()) if whole else None}
        return {**written, "top_logprobs": []}


@attrs.frozen
class Blanks:
    """The blanks of a canvas that is filled in."""

    codec: TextCodec
    template: Template
    spans: tuple[range, ...]
    """columns of each"""
    stop: tuple[str, ...]
    """before which what came into the only one ends"""
    whole: bool
    """whether the whole text is wanted, and not what came into the only one"""

    def said(self, completion: Completion) -> dict[str, Any]:
        """Return the text that is wanted, and of a whole one each blank's too."""
        found = filled(self.template, self.spans, completion.tokens, self.codec)
        if self.whole:
            return {"content": found.text, "fills": found.fills}
        fill = found.fills[0]
        ends = [place for text in self.stop if (place := fill.find(text)) >= 0]
        return {"content": fill[: min(ends, default=len(fill))]}


class InfillWriter(ChatWriter):
    """Writes what came into blanks, all of it when all of it is decided."""

    def __init__(self, index: int, speller: Speller, blanks: Blanks) -> None:
        super().__init__(index, speller, logprobs=False)
        self._blanks = blanks

    def added(self, update: Update) -> int:
        """Return how many tokens an update adds to those that were generated: all, when all are decided."""
        return self.generated(update.completion) if update.completion else 0

    def generated(self, completion: Completion) -> int:
        """Return how many tokens were generated: those of the blanks."""
        return sum(map(len, self._blanks.spans)) if completion.tokens else 0

    def chunk(self, update: Update) -> dict[str, Any]:
        """Return the choice of a chunk that adds nothing to the text."""
        return super().chunk(update._replace(new=""))

    def closing(self, completion: Completion) -> dict[str, Any]:
        """Return the choice of the last chunk, with the text."""
        return self._with("delta", super().closing(completion), completion)

    def whole(self, completion: Completion) -> dict[str, Any]:
        """Return the choice of an answer."""
        return self._with("message", super().whole(completion), completion)

    def _with(self, what: str, choice: dict[str, Any], completion: Completion) -> dict[str, Any]:
        said = self._blanks.said(completion)
        choice[what]["content"] = said.pop("content")
        return {**choice, "esdllm": {**choice.get("esdllm", {}), **said}} if said else choice


class TextWriter:
    """Writes as /v1/completions does."""

    prefix, whole_object, chunk_object = "cmpl", "text_completion", "text_completion"

    def __init__(self, index: int, speller: Speller, logprobs: bool) -> None:
        self._index, self._speller, self._logprobs, self._offset = index, speller, logprobs, 0

    def opening(self) -> dict[str, Any] | None:
        """Return None."""

    def chunk(self, update: Update) -> dict[str, Any]:
        """Return the choice of a chunk that adds to the text."""
        return self._choice(update.new, None, update.tokens, update.logprobs)

    def closing(self, completion: Completion) -> dict[str, Any]:
        """Return the choice of the last chunk."""
        return self._choice("", completion)

    def whole(self, completion: Completion) -> dict[str, Any]:
        """Return the choice of an answer."""
        return self._choice(completion.text, completion, completion.tokens, completion.logprobs)

    def added(self, update: Update) -> int:
        """Return how many tokens an update adds to those that were generated."""
        return len(update.tokens)

    def generated(self, completion: Completion) -> int:
        """Return how many tokens were generated."""
        return len(completion.tokens)

    def _choice(
        self, text: str, completion: Completion | None, tokens: Sequence[int] = (), logprobs: Sequence[float] = ()
    ) -> dict[str, Any]:
        written = self._tokens(tokens, logprobs) if self._logprobs else None
        return {"index": self._index, "text": text, "logprobs": written, **_finish(completion)}

    def _tokens(self, tokens: Sequence[int], logprobs: Sequence[float]) -> dict[str, Any]:
        texts, offsets = [self._speller.text(token) for token in tokens], []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        values = [_finite(value) for value in logprobs]
        return {"tokens": texts, "token_logprobs": values, "top_logprobs": None, "text_offset": offsets}


def _finite(logprob: float) -> float:
    return logprob if isfinite(logprob) else _LOWEST


def _finish(completion: Completion | None) -> dict[str, Any]:
    """Return why an answer ends, in OpenAI's words; where those have none for it, in ours beside them."""
    if completion is None:
        return {"finish_reason": None}
    if completion.finish_reason is FinishReason.DEADLINE:
        return {"finish_reason": "length", "esdllm": {"finish_reason": "deadline"}}
    return {"finish_reason": completion.finish_reason.value}


def provisional(update: Update, speller: Speller) -> dict[str, Any]:
    """Return what is not settled yet: how the text may go on, and the canvas from its first mask on, cell by cell."""
    told: dict[str, Any] = {"draft": update.draft}
    if (frame := update.frame) is not None:
        block = [frame.block.start, frame.block.stop]
        cells = [_cell(frame, at, token, speller) for at, token in enumerate(frame.standing)]
        told |= {"forwards": frame.forwards, "block": block, "cells": cells}
    return told


def _cell(frame: Frame, at: int, token: int, speller: Speller) -> dict[str, str]:
    if token < 0:
        return {"text": "", "state": "masked"}
    decided = "new" if frame.committed[at] else "committed"
    return {"text": speller.text(token), "state": "provisional" if frame.tokens[at] == frame.mask else decided}
