"""What an observer gets."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from esdllm.plan import Block, Moment, StepPlan

__all__ = ["StepRecord"]


class StepRecord(NamedTuple):
    """What an observer gets after each step. Tensors are live: copy what must outlast the call."""

    moment: Moment
    """when the step happened"""
    block: Block
    """the block being decoded, in computed positions"""
    plan: StepPlan
    """what the step computed"""
    tokens: Tensor
    """(B, L) int64"""
    committed: Tensor
    """(B, L) bool, columns whose token was committed at this step"""
    confidence: Tensor
    """(B, L) float32, by computed position"""
    revoked: Tensor | None = None
    """(B, L) bool, columns that became masks again at this step; None if the policy never revokes"""
    padding: tuple[int, ...] | None = None
    """for every row, the columns of padding at its head; None if nothing is padded"""
    guess: Tensor | None = None
    """(B, L) int64, by column: the candidate when its position last had logits; -1 if never"""
    computed: Tensor | None = None
    """(B, L) bool, columns whose token had logits at this step; None if the run does not tell"""
    guess_confidence: Tensor | None = None
    """(B, L) float32, by column: the confidence of `guess`; of a token that was just committed, that with which it was"""
    edited: Tensor | None = None
    """(B, L) bool, columns whose token was replaced at this step; None if the policy never edits"""
