"""What stands around the step: models, conversations, presets, problems, and what observers get."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import attrs
from torch import Tensor

from esdllm.errors import CheckpointError
from esdllm.plan import Block, Moment, StepPlan

__all__ = ["Message", "ModelSpec", "Preset", "Problem", "StepRecord"]

Message = Mapping[Literal["role", "content"], str]
"""One turn of a conversation."""


@attrs.frozen
class ModelSpec:
    """What the runtime knows of a model before its weights are read."""

    family: str
    """name of the model family"""
    n_layers: int
    """transformer layers"""
    hidden: int
    """C, features of a position between layers"""
    n_heads: int
    """H, query heads"""
    n_kv_heads: int
    """G, key and value heads"""
    head_dim: int
    """D, features of a head"""
    vocab: int
    """V, rows of the embedding and of the logits"""
    context: int
    """positions that the model was made for"""
    mask_id: int
    """id of the mask token"""
    eos_id: int
    """id of the end-of-text token, which pads too; another than the mask token's"""
    logit_shift: int = 0
    """s: logits at position i predict the token at i + s"""
    intermediate: int = 0
    """features inside the feed-forward, which predictions of memory read; 0 if not told"""
    stop_ids: tuple[int, ...] = ()
    """ids of the tokens that end an answer by the checkpoint's config, beside `eos_id` and what its tokenizer says"""
    remembers_forbidden: bool = False
    """whether importance goes on reading the confidence of an end-of-text that `delay_eos` forbids (ES-dLLM's code for
    Dream) or counts it as 0 (for LLaDA)"""

    def __attrs_post_init__(self) -> None:
        if self.mask_id in (self.eos_id, *self.stop_ids):
            raise CheckpointError(
                f"config.json: the token {self.mask_id} is the mask (mask_token_id) and ends the text too (eos_token_id); "
                "nothing that is decoded is told from a mask then: write the id of the token that ends a text as eos_token_id"
            )


@attrs.frozen
class Preset:
    """A named configuration: one line on what it is, and the settings it makes."""

    summary: str
    """one line, as `esdllm plugins` prints it"""
    settings: Mapping[str, Any]
    """what `DecodeConfig.from_dict` takes; at least a component for every section"""


@attrs.frozen
class Problem:
    """A question with one right answer."""

    prompt: str
    """what the model is asked"""
    answer: str
    """what it should say"""
    task: str = "all"
    """kind of problem, for which a score is given by itself"""
    split: str = ""
    """"tune" for problems that settings may be chosen by, "test" for those that scores are taken on; empty if not said"""


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
