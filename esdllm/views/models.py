"""What the runtime knows of a model, and a turn of a conversation with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import attrs

from esdllm.errors import CheckpointError, brief

__all__ = ["BlockCausal", "Grid", "Message", "ModelSpec"]

Message = Mapping[Literal["role", "content"], str]
"""One turn of a conversation."""

Grid = Literal["start", "prompt-end"]
"""Where blocks of attention begin: counted from a row's first token, or from its prompt's end."""


@attrs.frozen
class BlockCausal:
    """Attention in which a position sees its own block and all blocks before it, and none behind.

    Raises:
        CheckpointError: a field is none that it may be.
    """

    size: int
    """b, positions of a block"""
    grid: Grid = "start"
    """where blocks begin"""
    written: int | None = None
    """positions of a block where the keys of the prompt and of a finished block are written, a divisor of `size`: None for
    `size` itself, 1 for keys that are written causally"""
    leads: bool = False
    """whether the last row that such a write computes decides the first token of the block that follows"""

    def __attrs_post_init__(self) -> None:
        if type(self.size) is not int or self.size < 1:
            raise CheckpointError(
                f"a block of attention has size {brief(self.size)}; give a whole number of at least 1"
            )
        if self.grid not in get_args(Grid):
            raise CheckpointError(f"blocks of attention begin at {brief(self.grid)}; give 'start' or 'prompt-end'")
        if type(self.leads) is not bool:
            raise CheckpointError(f"leads is {brief(self.leads)}; give True or False")
        if self.written is not None and (type(self.written) is not int or self.written < 1 or self.size % self.written):
            raise CheckpointError(
                f"keys are written in blocks of {brief(self.written)}; give a divisor of the block's size {self.size}, or None"
            )

    @property
    def write_size(self) -> int:
        """The positions of a block where keys are written."""
        return self.written or self.size


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
    attention: BlockCausal | None = None
    """which positions a position sees; None for all of them"""

    def __attrs_post_init__(self) -> None:
        if self.mask_id in (self.eos_id, *self.stop_ids):
            raise CheckpointError(
                f"config.json: the token {self.mask_id} is the mask (mask_token_id) and ends the text too (eos_token_id); "
                "nothing that is decoded is told from a mask then: write the id of the token that ends a text as eos_token_id"
            )
        if self.attention is not None and not isinstance(self.attention, BlockCausal):
            raise CheckpointError(
                f"the model's attention is {brief(self.attention)}; give a BlockCausal, or None where every position sees all"
            )
