"""How an answer unfolds: after each step, what is settled of its text and what it may become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from esdllm.interfaces import TextCodec
from esdllm.runtime.records import until_stop
from esdllm.use.frames import Frame, Frames, spelled
from esdllm.views import ModelSpec, StepRecord

__all__ = ["StreamEvent", "Unfolding"]


class StreamEvent(NamedTuple):
    """What is known of an answer after a step; the last event has `final`."""

    text: str
    """what is decided without a gap before it: later events only add to it"""
    new: str
    """what this event adds to `text`"""
    draft: str
    """how the answer goes on after `text` as things stand: what is decided, the model's candidates, · where there is none"""
    positions: tuple[int, ...]
    """positions that were decided at this step, from 0, the answer's first"""
    settled: tuple[int, ...]
    """the tokens of `text`"""
    drafted: tuple[int, ...]
    """the tokens of `draft`; the mask's id where there is no candidate"""
    frame: Frame
    """the canvas"""
    final: bool = False
    """whether the run is over"""


class Unfolding:
    """Reads events off a run, as a step observer does; `most` are the tokens of the answer, None for all the canvas holds."""

    def __init__(self, codec: TextCodec | None, stop_ids: Sequence[int], most: int | None = None) -> None:
        self._codec, self.stops = codec, frozenset(stop_ids)
        self._frames, self._text = Frames(most), ""
        self.frame: Frame | None = None
        """the last frame; None before the run"""

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Take the canvas, (1, L)."""
        self.frame = self._frames.start(tokens, spec)

    def step(self, record: StepRecord) -> StreamEvent:
        """Return what is known after a step."""
        self.frame = self._frames.step(record)
        return self._event(self.frame)

    def last(self, tokens: Sequence[int], text: str) -> StreamEvent:
        """Return the event that ends the stream, with the whole answer."""
        if self.frame is None:
            raise AssertionError("a run that returned has shown its canvas")
        new = text[len(self._text) :] if text.startswith(self._text) else ""
        return StreamEvent(text, new, "", (), tuple(tokens), (), self.frame, final=True)

    def _event(self, frame: Frame) -> StreamEvent:
        settled = tuple(until_stop(frame.tokens[: frame.settled], self.stops))
        ended = len(settled) < frame.settled
        drafted = () if ended else tuple(until_stop(frame.standing[frame.settled :], self.stops))
        text, before = self._settled_text(settled), self._text
        self._text = text
        positions = tuple(i for i, new in enumerate(frame.committed) if new)
        tokens = tuple(frame.mask if token < 0 else token for token in drafted)
        return StreamEvent(
            text, text[len(before) :], self._draft(text, settled, drafted), positions, settled, tokens, frame
        )

    def _settled_text(self, settled: Sequence[int]) -> str:
        """Return the text of tokens, without a last character of which bytes are missing; never less than before."""
        text = self._codec.decode(settled).rstrip("\ufffd") if self._codec else ""
        return text if text.startswith(self._text) else self._text

    def _draft(self, text: str, settled: Sequence[int], drafted: Sequence[int]) -> str:
        if not self._codec:
            return ""
        known = next((i for i in reversed(range(len(drafted))) if drafted[i] >= 0), -1) + 1
        whole = spelled(self._codec, [*settled, *drafted[:known]], "·")
        return whole[len(text) :] if whole.startswith(text) else spelled(self._codec, drafted[:known], "·")
