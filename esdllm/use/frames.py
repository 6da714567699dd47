"""Pictures of a canvas on the host, one per step: what streams, live views and traces are made from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any, NamedTuple

from torch import Tensor

from esdllm.interfaces import TextCodec
from esdllm.plan import StepPlan
from esdllm.views import ModelSpec, StepRecord

__all__ = ["Frame", "Frames", "so_far", "spelled"]


class Frame(NamedTuple):
    """The first row's canvas after a step, from its first mask on; positions count from there."""

    forwards: int
    """forward passes so far"""
    tokens: tuple[int, ...]
    """what is decided; the mask's id where nothing is"""
    guesses: tuple[int, ...]
    """the model's candidates when a position last had logits; -1 where it never had"""
    committed: tuple[bool, ...]
    """whether a position was decided at this step"""
    computed: tuple[bool, ...] | None
    """whether a position had logits at this step; None if the run does not tell"""
    block: range
    """positions that may be decided"""
    number: int
    """of the block, from 0"""
    plan: StepPlan | None
    """what the step computed; None before the first"""
    revises: bool
    """whether what is decided in the block may become a mask or another token again"""
    mask: int
    """the mask's id"""
    length: int
    """columns of the whole canvas, prompt included"""

    @property
    def decided(self) -> int:
        """Positions decided so far."""
        return sum(token != self.mask for token in self.tokens)

    @property
    def settled(self) -> int:
        """Length of the beginning that has no mask, and none of which can change again."""
        gap = next((i for i, token in enumerate(self.tokens) if token == self.mask), len(self.tokens))
        return min(gap, max(0, self.block.start)) if self.revises else gap

    @property
    def standing(self) -> tuple[int, ...]:
        """Every position's token, decided or a candidate; -1 where there is neither."""
        pairs = zip(self.tokens, self.guesses, strict=True)
        return tuple(guess if token == self.mask else token for token, guess in pairs)


class Frames:
    """Reads frames off a run, as a step observer does; with `most`, of so many columns, for a last block may be filled up."""

    def __init__(self, most: int | None = None) -> None:
        self._most = most

    def start(self, tokens: Tensor, spec: ModelSpec) -> Frame:
        """Return the frame before the first step."""
        self._spec, self._forwards = spec, 0
        self._first = int((tokens[0] == spec.mask_id).long().argmax())
        found = self._row(tokens)
        nothing = (False,) * len(found)
        return Frame(
            0, found, (-1,) * len(found), nothing, None, range(0), 0, None, False, spec.mask_id, tokens.shape[1]
        )

    def step(self, record: StepRecord) -> Frame:
        """Return the frame after a step."""
        self._forwards += 1
        tokens = self._row(record.tokens)
        shift = self._spec.logit_shift - self._first
        return Frame(
            forwards=self._forwards,
            tokens=tokens,
            guesses=(-1,) * len(tokens) if record.guess is None else self._row(record.guess),
            committed=self._row(record.committed),
            computed=None if record.computed is None else self._row(record.computed),
            block=range(record.block.start + shift, record.block.stop + shift),
            number=record.moment.block,
            plan=record.plan,
            revises=record.revoked is not None or record.edited is not None,
            mask=self._spec.mask_id,
            length=record.tokens.shape[1],
        )

    def _row(self, x: Tensor) -> tuple[Any, ...]:
        return tuple(x[0, self._first :][: self._most].tolist())


def so_far(frame: Frame, stops: Collection[int]) -> list[int]:
    """Return the tokens that are decided, up to the first of `stops` and the last that is decided; -1 where a mask is."""
    tokens = [-1 if token == frame.mask else token for token in frame.tokens]
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    last = next((i for i in reversed(range(end)) if tokens[i] >= 0), -1)
    return tokens[: last + 1]


def spelled(codec: TextCodec, tokens: Sequence[int], gap: str, each: bool = True) -> str:
    """Return the text of tokens, and `gap` for those below 0: for each of them, or for each stretch."""
    parts = []
    for missing, run in groupby(tokens, key=lambda token: token < 0):
        stretch = list(run)
        parts.append(gap * (len(stretch) if each else 1) if missing else codec.decode(stretch))
    return "".join(parts)
