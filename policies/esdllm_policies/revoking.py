"""Unmasking policies that may take a decision back."""

from __future__ import annotations

from typing import Any

import attrs
from attrs import validators
from torch import Tensor

from esdllm import UnmaskingView, option
from esdllm_policies.unmasking import chosen_or_best


def _probability(default: float, help: str, tune: tuple[float, ...]) -> Any:
    return option(help, validators.ge(0.0), validators.le(1.0), default=default, tune=tune)


@attrs.frozen
class WinoUnmasking:
    """Commit wide, then verify: a decided token whose probability falls below `verify` becomes a mask again.

    WINO, arXiv 2507.18578, verifies with masks in the decided positions' shadow. Here a position is verified by its own
    logits, whenever a step computes them, so a token vouches for itself; and it is put back at most `revisions` times.
    """

    threshold: float = _probability(
        0.6, "confidence above which a position is committed; the best one always is", (0.4, 0.5, 0.6, 0.7, 0.8)
    )
    verify: float = _probability(
        0.9, "probability below which a decided token is put back", (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    )
    revisions: int = option("how often a position may be put back", validators.ge(1), default=1)

    def counts(self, masked: int, blocks: int) -> None:
        """Return None: the logits decide."""
        return

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the confident ones, and always the best one."""
        return chosen_or_best(view.confidence > self.threshold, view.confidence, view.eligible)

    def revoke(self, view: UnmaskingView) -> Tensor:
        """Return the decided positions whose token is no longer believed."""
        assert view.held is not None
        assert view.revocable is not None
        logits = view.logits
        now = logits.gather(-1, view.held.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
        return view.revocable & (now.exp() < self.verify)
