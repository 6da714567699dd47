"""An unmasking policy that goes by all confidences at once, sorted."""

from __future__ import annotations

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import UnmaskingView, option
from esdllm_policies.unmasking import Deciding, placed

__all__ = ["FrechetProfileUnmasking"]


@attrs.frozen
class FrechetProfileUnmasking(Deciding):
    """The n most confident, n the largest with sum(1 - c_i) + (1 - c_n) < 1 - margin, c_n the n-th confidence; at least one.

    Fast-dLLM++, arXiv 2606.02955: 1 less that sum is the least probability (Frechet's bound) that the n candidates are right
    together, however they hang together, and 1 - c_n the most that any other token has at the last of them. Where all
    confidences are equal this is `factor` at 1 - margin.
    """

    margin: float = option(
        "by how much the bound must be the larger; lower commits more, below 0 more than is sure to go together",
        validators.le(1.0),
        default=0.02,
        tune=(0.0, 0.02, 0.05, 0.1, 0.2),
    )
    first_alone: bool = option(
        "whether a block's first step commits its first position and no other, as Fast-dLLM decodes Dream; where that is decided "
        "the step is as others",
        default=False,
    )

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the largest set that the margin allows."""
        confidence = view.confidence.masked_fill(~view.eligible, float("-inf"))
        ordered = confidence.sort(dim=1, descending=True, stable=True)
        doubt = 1 - ordered.values
        taken = doubt.cumsum(1) + doubt < 1 - self.margin
        taken = taken | (torch.arange(taken.shape[1], device=taken.device) == 0)
        chosen = placed(taken, ordered.indices, view.eligible)
        return self._first(view, chosen) if self.first_alone else chosen

    @staticmethod
    def _first(view: UnmaskingView, chosen: Tensor) -> Tensor:
        """Return (B, N) bool, at a block's first step its first position alone, if that is eligible; else what is chosen."""
        assert view.block is not None
        assert view.step_in_block is not None
        first = view.eligible & (view.columns == view.block[:, :1])
        alone = (view.step_in_block.view(-1, 1) == 0) & first.any(1, keepdim=True)
        return torch.where(alone, first, chosen)
