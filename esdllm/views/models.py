"""What the runtime knows of a model, and a turn of a conversation with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import attrs

from esdllm.errors import CheckpointError, brief
from esdllm.plan import BlockCausal

__all__ = ["ExpertLayers", "Message", "ModelSpec"]

Message = Mapping[Literal["role", "content"], str]
"""One turn of a conversation."""


@attrs.frozen
class ExpertLayers:
    """The layers that have experts in place of one feed-forward, and how much of them a position goes through."""

    layers: tuple[int, ...]
    """numbers of the layers"""
    experts: int
    """E, feed-forwards of such a layer"""
    chosen: int
    """how many of them a position goes through"""
    intermediate: int
    """features inside one of them"""
    shared: int = 0
    """features inside those that all positions go through beside"""


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
    experts: ExpertLayers | None = None
    """which layers have experts; None without any"""

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
        if self.attention is not None and (self.logit_shift > 1 or (self.logit_shift and not self.attention.leads)):
            raise CheckpointError(
                f"a block-causal model has the logit shift {self.logit_shift}, and its blocks have leads = "
                f"{self.attention.leads}; give a shift of 0, or one of 1 with leads = True, for then the row before a block "
                "decides the block's first token"
            )

    def routes(self, layer: int) -> bool:
        """Return whether a layer has experts."""
        return self.experts is not None and layer in self.experts.layers

    def inside(self, layer: int) -> int:
        """Return the features inside the feed-forward of a layer that a position goes through; 0 if not told."""
        if self.experts is None or layer not in self.experts.layers:
            return self.intermediate
        return self.experts.chosen * self.experts.intermediate + self.experts.shared
