"""What components ask a canvas to keep of each position; what none asks for is not kept."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from esdllm.views import Signal

__all__ = ["CanvasNeeds"]


class CanvasNeeds(NamedTuple):
    """What components ask to be kept of each position."""

    memory: int = 0
    """floats that the unmasking policy remembers"""
    score_memory: int = 0
    """floats that the scorer remembers at each layer"""
    signals: Collection[Signal] = ()
    """what the scorer reads of logits beyond confidence"""
    revisions: int = 0
    """how often the unmasking policy may put a position back"""
    edits: int | None = None
    """how many steps may edit a block without masks; None if the policy never edits"""
    drafts: int | None = None
    """the mask's id, which undecided columns show where nothing is drafted; None if the policy never drafts"""
    ends: bool = False
    """whether blocks end where each step tells"""
    measures: bool = False
    """whether refreshes measure drift"""

    def tensors(self, size: torch.Size, branches: int, n_layers: int, device: torch.device) -> dict[str, Tensor | None]:
        """Return the canvas' tensors by name, for `size` (B, L); None for those that nobody needs."""

        def kept(wanted: bool, *more: int, fill: int = 0, dtype: torch.dtype = torch.float32) -> Tensor | None:
            return torch.full((*size, *more), fill, dtype=dtype, device=device) if wanted else None

        edits = self.edits is not None
        return {
            "memory": kept(self.memory > 0, self.memory),
            "score_memory": kept(self.score_memory > 0, branches, n_layers, self.score_memory),
            "entropy": kept("entropy" in self.signals),
            "margin": kept("margin" in self.signals),
            "revoked": kept(self.revisions > 0, dtype=torch.bool),
            "revisions": kept(self.revisions > 0, fill=self.revisions, dtype=torch.int64),
            "edited": kept(edits, dtype=torch.bool),
            "edits_left": torch.zeros(size[0], dtype=torch.int64, device=device) if edits else None,
            "drafts": kept(self.drafts is not None, fill=self.drafts or 0, dtype=torch.int64),
            "ends": torch.zeros(size[0], dtype=torch.int64, device=device) if self.ends else None,
            "drift": torch.zeros(size[0], 2, device=device) if self.measures else None,
        }
