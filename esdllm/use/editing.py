"""Editing: what a model holds for least likely in a text becomes masks, and is decoded again; all else stays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import exp

import attrs

from esdllm.errors import InputError, brief
from esdllm.interfaces import TextCodec
from esdllm.runtime.engine import Engine
from esdllm.use.answers import Answer
from esdllm.use.blanks import encoded
from esdllm.use.incoming import codec_of
from esdllm.use.passes import check_sees_all, masked_log_probs

__all__ = ["EditWish", "Edited", "edit"]

_AT_ONCE = 64  # rows of a forward


@attrs.frozen(repr=False)
class Edited(Answer):
    """A text of which a part was decoded again. `tokens` are those that were."""

    changes: tuple[tuple[str, str], ...] = ()
    """what was decoded again and came out otherwise, from the left: before and after"""


@attrs.frozen(kw_only=True)
class EditWish:
    """What is to be edited."""

    instruction: str | None
    span: str | tuple[int, int] | None
    count: int | None
    below: float

    def __attrs_post_init__(self) -> None:
        if self.count is not None and (type(self.count) is not int or self.count < 1):
            raise InputError(f"count = {brief(self.count)}; give how many tokens to decode again, at least 1")
        if not isinstance(self.below, (int, float)) or not 0 < self.below <= 1:
            raise InputError(f"below = {brief(self.below)}; give a probability above 0, at most 1")


def edit(engine: Engine, text: str, wish: EditWish, seed: int | None = None) -> Edited:
    """Return a text edited; see `Pipeline.edit`."""
    check_sees_all(engine, "an edit")
    if not isinstance(text, str) or not text:
        raise InputError(f"what is edited is a text, not {brief(text)}")
    model, codec = engine.model, codec_of(engine.model)
    tokens = encoded(text, codec, model.spec.mask_id)
    before, after = _around(engine, wish.instruction)
    row = [*before, *tokens, *after]
    start, stop = _span(text, wish.span)
    parts = [part for part in _parts(text, tokens, codec) if start <= part.start and part.stop <= stop]
    askable = [part for part in parts if len(before) + part.tokens.start >= model.spec.logit_shift]
    sure, forwards = _probabilities(engine, row, len(before), askable)
    chosen = sorted(range(len(askable)), key=sure.__getitem__)[: wish.count]
    chosen = sorted(at for at in chosen if wish.count is not None or sure[at] < wish.below)
    if not chosen:
        return Edited(text, text, (), forwards, 0.0)
    again = [askable[at] for at in chosen]
    for part in again:
        for column in part.tokens:
            row[len(before) + column] = model.spec.mask_id
    result = engine.generate([row], infill=True, seed=seed)
    made = result.answers[0][len(before) : len(before) + len(tokens)]
    new, changes = _joined(text, made, again, codec)
    redone = tuple(made[column] for part in again for column in part.tokens)
    return Edited(text, new, redone, forwards + result.forwards, result.seconds, changes=changes)


@attrs.frozen
class _Piece:
    """The least part of a text that is whole characters and whole tokens."""

    start: int
    stop: int
    tokens: range


def _around(engine: Engine, instruction: str | None) -> tuple[list[int], list[int]]:
    """Return the tokens before and behind the text: those of a conversation whose answer it is, or none."""
    if instruction is None:
        return [], []
    model = engine.model
    if not isinstance(instruction, str) or not instruction.strip():
        raise InputError(f"an instruction is a text, not {brief(instruction)}")
    if not model.chats():
        raise InputError("an instruction goes through a chat template, and this checkpoint has none; leave it out")
    turn = [end for end in model.stop_ids if end != model.spec.eos_id]
    return codec_of(model).encode_chat([{"role": "user", "content": instruction}]), turn[:1] or [model.spec.eos_id]


def _span(text: str, span: str | tuple[int, int] | None) -> tuple[int, int]:
    """Return the characters that may change, from and to."""
    if span is None:
        return 0, len(text)
    if isinstance(span, str):
        if not span or text.count(span) != 1:
            raise InputError(
                f"{brief(span)} stands {text.count(span) if span else 0} times in the text; give a part that stands once"
            )
        return text.index(span), text.index(span) + len(span)
    if len(span) != 2 or not all(type(end) is int for end in span) or not 0 <= span[0] < span[1] <= len(text):
        raise InputError(
            f"the span {brief(span)} is none of a text of {len(text)} characters; give from and to, counted from 0"
        )
    return span[0], span[1]


def _parts(text: str, tokens: Sequence[int], codec: TextCodec) -> list[_Piece]:
    """Return the parts of a text; none where tokens do not write it as it is."""
    found: list[_Piece] = []
    first = start = 0
    for at in range(1, len(tokens) + 1):
        head = codec.decode(tokens[:at], keep_special=True)
        if text.startswith(head) and head + codec.decode(tokens[at:], keep_special=True) == text:
            found.append(_Piece(start, len(head), range(first, at)))
            first, start = at, len(head)
    return found


def _probabilities(engine: Engine, row: Sequence[int], before: int, parts: Sequence[_Piece]) -> tuple[list[float], int]:
    """Return how probable the model holds each part, masked by itself (of several tokens the least), and the forwards."""
    mask, found, forwards = engine.model.spec.mask_id, [], 0
    for first in range(0, len(parts), _AT_ONCE):
        columns = [[before + column for column in part.tokens] for part in parts[first : first + _AT_ONCE]]
        rows = [[mask if at in hidden else token for at, token in enumerate(row)] for hidden in columns]
        for hidden, log_probs in zip(columns, masked_log_probs(engine, rows, columns), strict=True):
            found.append(exp(min(float(log_probs[at, row[column]]) for at, column in enumerate(hidden))))
        forwards += 1
    return found, forwards


def _joined(
    text: str, made: Sequence[int], again: Sequence[_Piece], codec: TextCodec
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the text with what was decoded again, and the changes; parts that follow each other are one."""
    new, at, changes = "", 0, []
    for _, numbered in groupby(enumerate(again), lambda pair: pair[1].tokens.start - _before(again, pair[0])):
        run = [part for _, part in numbered]
        fill = codec.decode([made[column] for part in run for column in part.tokens])
        old = text[run[0].start : run[-1].stop]
        new, at = new + text[at : run[0].start] + fill, run[-1].stop
        if fill != old:
            changes.append((old, fill))
    return new + text[at:], tuple(changes)


def _before(parts: Sequence[_Piece], number: int) -> int:
    """Return the tokens of all parts before one."""
    return sum(len(part.tokens) for part in parts[:number])
