"""An unmasking policy that may replace what it has decided."""

from __future__ import annotations

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import UnmaskingView, option
from esdllm_policies.unmasking import best


@attrs.frozen
class EditingUnmasking:
    """All masks above a threshold; and a decided token gives way to a candidate that is surer than another (LLaDA2.1)."""

    threshold: float = option(
        "confidence above which a position is committed", validators.ge(0.0), validators.le(1.0), default=0.95
    )
    editing_threshold: float = option(
        "confidence above which a candidate replaces another token", validators.ge(0.0), validators.le(1.0), default=0.9
    )
    editing_steps: int = option(
        "steps that a block gets at most once no mask is left in it; one that replaces nothing is the last",
        validators.ge(0),
        default=16,
    )
    least: int = option("masks that a step commits at least, however unsure", validators.ge(1), default=1)

    def counts(self, masked: int, blocks: int) -> None:
        """Return None: the logits decide."""
        return

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the confident masks, or the best few."""
        few = best(view._replace(quota=torch.full_like(view.quota, self.least)), view.confidence)
        return few | (view.eligible & (view.confidence > self.threshold))

    def edit(self, view: UnmaskingView) -> Tensor:
        """Return what is decided and to be replaced."""
        assert view.editable is not None
        return view.editable & (view.tokens != view.held) & (view.confidence > self.editing_threshold)
