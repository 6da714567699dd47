"""An unmasking policy that gives every position a budget of steps, by how sure the model was of it at first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import UnmaskingView, option
from esdllm_policies.unmasking import Deciding, best_or_more, probability_option

__all__ = ["CaiUnmasking"]

_LEAST, _MOST = 0.20, 0.98  # of a threshold once it is scaled
_EASY, _HARD = 0.50, 0.25  # first confidences above and below which a position is easy or hard
_WARM, _SLOW, _STEPS, _ENOUGH = 15, 1.5, 4, 0.40  # the stall detector's


def _probabilities(instance: Any, attribute: Any, value: Sequence[float]) -> None:
    if not value or any(not 0 <= end <= 1 for end in value):
        raise ValueError(f"ends = {list(value)} must be probabilities, one at least")


class _Noted(NamedTuple):
    """What the policy remembers of a row, the same at each of its positions that had logits at a step. All (B, 1)."""

    step: Tensor
    """the steps of the block, that one included; 0 if none yet"""
    left: Tensor
    """masks of the block before that step"""
    slow: Tensor
    """steps in succession that committed too few"""
    used: Tensor
    """whether the stall detector has fired in this block"""
    fires: Tensor
    """whether it fires at that step"""


@attrs.frozen
class CaiUnmasking(Deciding):
    """All above a threshold that falls within a block, and what has waited longer than its first confidence calls for.

    CAI-dLLM, arXiv 2608.22646. The threshold falls from `start` to the block's own of `ends`. With `gated` it is lower at a
    block's first places than at its last, a position is committed once it has waited 8, 32 or 64 steps, by its first confidence
    and its place, and a block that stalls commits all above 0.4, once. The best one always is committed. A position that early
    skipping left without logits gets its budget at the first step that gives it some.
    """

    start: float = probability_option(0.9, "the threshold of a block's first steps", (0.7, 0.8, 0.9, 0.95))
    ends: Sequence[float] = option(
        "the threshold that a block's last steps come to, by block; the last one goes for all that follow",
        _probabilities,
        default=(0.7, 0.6, 0.5, 0.4),
        converter=tuple,
        tune=((0.7, 0.6, 0.5, 0.4), (0.7,), (0.5,), (0.9,)),
    )
    warmup: float = probability_option(
        0.15, "the share of a block's steps, one per position, before the threshold falls", (0.0, 0.15, 0.3)
    )
    shape: Literal["cosine", "linear"] = option(
        "how it falls: along half a cosine, or a line", validators.in_(("cosine", "linear")), default="cosine"
    )
    gated: bool = option("whether places in the block, budgets and stalls count", default=True)
    stalls: Literal["row", "batch"] = option(
        "whose commits tell a stall: each row's own, or those of all rows together as published, which couples them",
        validators.in_(("row", "batch")),
        default="row",
    )

    @property
    def memory(self) -> int:
        """A position's budget, and what is told of its row."""
        return 1 + len(_Noted._fields)

    def remember(self, view: UnmaskingView) -> Tensor:
        """Return (B, N, M): the budgets, 0 before there is one, and what is told of the row at this step."""
        assert view.memory is not None
        assert view.step_in_block is not None
        first = view.step_in_block.view(-1, 1) == 0
        before = view.memory[..., 0].masked_fill(first, 0.0)
        undecided = view.undecided.gather(1, view.columns) & _inside(view)
        budgets = torch.where((before == 0) & undecided, self._budgets(view), before)
        told = torch.stack([x.expand_as(view.step_in_block.view(-1, 1)) for x in self._told(view)], -1)
        return torch.cat([budgets.unsqueeze(-1), told.expand(-1, budgets.shape[1], -1)], -1)

    def select(self, view: UnmaskingView) -> Tensor:
        """Return what passes its threshold or has spent its budget, and the best one."""
        assert view.memory is not None
        assert view.step_in_block is not None
        threshold, steps = self._threshold(view), view.step_in_block.view(-1, 1)
        if not self.gated:
            return best_or_more(view.confidence > threshold, view.confidence, view.eligible)
        budgets, told = view.memory[..., 0], _Noted(*view.memory[..., 1:].unbind(-1))
        scaled = (threshold * _scale(view)).clamp(_LEAST, _MOST)
        spent = (budgets > 0) & (steps >= budgets)
        stalled = (told.fires > 0) & (view.confidence > _ENOUGH)
        return best_or_more((view.confidence > scaled) | spent | stalled, view.confidence, view.eligible)

    def _threshold(self, view: UnmaskingView) -> Tensor:
        """Return (B, 1) float32, the threshold of each row's step."""
        assert view.step_in_block is not None
        assert view.block_number is not None
        assert view.block_length is not None
        length = view.block_length.to(view.confidence)
        ends = torch.full_like(length, self.ends[-1])
        for number in reversed(range(len(self.ends) - 1)):
            ends = ends.masked_fill(view.block_number <= number, self.ends[number])
        if self.warmup == 1:
            return ends.unsqueeze(1)
        share = ((view.step_in_block / length - self.warmup) / (1 - self.warmup)).clamp(0, 1)
        left = 1 - share if self.shape == "linear" else (1 + (math.pi * share).cos()) / 2
        return (ends + (self.start - ends) * left).unsqueeze(1)

    def _budgets(self, view: UnmaskingView) -> Tensor:
        """Return (B, N) float32, the steps that each position may wait, by its confidence now and its place in the block."""
        places, c = _places(view), view.confidence
        tier = 1 - (c > _EASY).long() + (c < _HARD).long()
        tier = torch.where((places >= 32) & (places < 48), tier.clamp(min=1), tier)
        return torch.full_like(c, 64).masked_fill(tier == 1, 32).masked_fill(tier == 0, 8).masked_fill(places >= 48, 64)

    def _told(self, view: UnmaskingView) -> _Noted:
        """Return what is told of each row, this step included, of what the positions that had logits last were told."""
        assert view.memory is not None
        assert view.step_in_block is not None
        assert view.block is not None
        now = view.step_in_block.view(-1, 1).to(view.memory)
        told = view.memory[..., 1:] * (_inside(view) & (now > 0)).unsqueeze(-1)
        before = _newest(told)
        left = view.undecided.gather(1, view.block).sum(1, keepdim=True).to(now)
        number = (before.left - left) * (before.step == now)
        if self.stalls == "batch":
            before, number = _newest(told.flatten(0, 1).unsqueeze(0)), number.sum(0, keepdim=True)
        slow = (before.slow + 1) * ((number < _SLOW) & (now > _WARM))
        fires = (slow >= _STEPS).to(now) * (1 - before.used)
        return _Noted(now + 1, left, slow, before.used.maximum(fires), fires)


def _inside(view: UnmaskingView) -> Tensor:
    """Return (B, N) bool, the positions of the block."""
    assert view.block is not None
    return (view.columns >= view.block[:, :1]) & (view.columns <= view.block[:, -1:])


def _places(view: UnmaskingView) -> Tensor:
    """Return (B, N) int64, places in the block."""
    assert view.block is not None
    return view.columns - view.block[:, :1]


def _scale(view: UnmaskingView) -> Tensor:
    """Return (B, N) float32, what the threshold is multiplied by at each place of the block."""
    places, last = _places(view), torch.full_like(view.confidence, 1.10)
    return last.masked_fill(places < 48, 1.05).masked_fill(places < 32, 0.90).masked_fill(places < 16, 0.80)


def _newest(told: Tensor) -> _Noted:
    """Return (B, 1) each, what of each row's positions (B, N, K) the one was told that was told last."""
    at = told[..., :1].argmax(1, keepdim=True).expand(-1, -1, told.shape[-1])
    return _Noted(*told.gather(1, at).unbind(-1))
