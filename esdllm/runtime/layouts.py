"""Which positions of a canvas are to be decided: as tensors, and as planning sees them. On the host."""

from __future__ import annotations

import torch
from torch import Tensor

from esdllm.plan import Layout
from esdllm.views import ModelSpec

__all__ = ["layout", "undecided_positions"]


def undecided_positions(tokens: Tensor, spec: ModelSpec) -> Tensor:
    """Return (B, L) bool, the computed positions whose token is still a mask."""
    masked = tokens == spec.mask_id
    undecided = torch.zeros_like(masked)
    undecided[:, : masked.shape[1] - spec.logit_shift] = masked[:, spec.logit_shift :]
    return undecided


def layout(tokens: Tensor, attention_mask: Tensor, spec: ModelSpec) -> Layout:
    """Return the layout of tokens (B, L) and attention mask (B, L) bool on the host."""
    rows = undecided_positions(tokens, spec)
    starts = () if attention_mask.all() else tuple(attention_mask.long().argmax(1).tolist())
    masks = tuple(tuple(row.nonzero()[:, 0].tolist()) for row in rows)
    return Layout(tokens.shape[1], masks, starts, spec.attention, spec.logit_shift)
