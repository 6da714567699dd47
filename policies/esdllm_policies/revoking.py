"""Unmasking policies that may take a decision back."""

from __future__ import annotations

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import UnmaskingView, option
from esdllm_policies.unmasking import Deciding, best, chosen_or_best, probability_option


@attrs.frozen
class WinoUnmasking(Deciding):
    """Commit wide, then verify: a decided token whose probability falls below `verify` becomes a mask again.

    WINO, arXiv 2507.18578, verifies with masks in the decided positions' shadow. Here a position is verified by its own
    logits, whenever a step computes them, so a token vouches for itself; and it is put back at most `revisions` times.
    """

    threshold: float = probability_option(
        0.6, "confidence above which a position is committed; the best one always is", (0.4, 0.5, 0.6, 0.7, 0.8)
    )
    verify: float = probability_option(
        0.9, "probability below which a decided token is put back", (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    )
    revisions: int = option("how often a position may be put back", validators.ge(1), default=1)

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


@attrs.frozen
class P2Unmasking:
    """After step i of S the floor of n (1 - i / S) of a block's n positions are masks: the least confident, decided or not.

    P2, arXiv 2502.03540, as Open-dLLM's `p2` decodes: what is decided keeps its token while it is among the others. With more
    steps than positions some decide nothing new.
    """

    steps_per_block: int = option("S, denoising steps of a block", validators.ge(1), default=256)

    @property
    def revisions(self) -> int:
        """Every step may put a position back."""
        return self.steps_per_block

    def counts(self, masked: int, blocks: int) -> None:
        """Return None: positions are decided more than once."""
        return

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the masks that are not among the least confident."""
        return view.eligible & ~self._least_confident(view)

    def revoke(self, view: UnmaskingView) -> Tensor:
        """Return what is decided and among the least confident."""
        assert view.revocable is not None
        return view.revocable & self._least_confident(view)

    def _least_confident(self, view: UnmaskingView) -> Tensor:
        """Return (B, N) bool, as many positions of the block as are to be masks after this step."""
        assert view.revocable is not None
        assert view.step_in_block is not None
        among = view.eligible | view.revocable
        share = 1 - (view.step_in_block + 1).clamp(max=self.steps_per_block).double() / self.steps_per_block
        masks = (among.sum(1) * share.float()).floor()  # rounded as the public code has it
        order = view.confidence.masked_fill(~among, float("inf")).sort(dim=1, stable=True).indices
        least = torch.arange(order.shape[1], device=order.device) < masks.unsqueeze(1)
        return torch.zeros_like(among).scatter(1, order, least)


@attrs.frozen
class RemdmUnmasking(Deciding):
    """One position a step; once most of a block is decided, as many steps as it is long take the least sure commits back.

    ReMDM, arXiv 2503.00307, as its authors decode LLaDA: from the floor of `begin` of a block of n positions on, each of n
    steps puts `number` positions back, those that were least confident when they were committed, and commits as many. Then
    the rest is filled in one by one. Its code draws candidates; here the sampler does. A block takes 2 n steps.
    """

    number: int = option("positions that a step puts back", validators.ge(1), default=1, tune=(1, 2, 4))
    begin: float = probability_option(
        0.875, "share of the block that is decided before the first is put back", (0.5, 0.75, 0.875)
    )

    @property
    def memory(self) -> int:
        """What is 1 more than the confidence with which a position was committed; 0 where it is none."""
        return 1

    @property
    def revisions(self) -> int:
        """Every step may put a position back; which steps do, the block's length says."""
        return 4096

    def remember(self, view: UnmaskingView) -> Tensor:
        """Return (B, N, 1), what was committed before and now, with its confidence."""
        assert view.memory is not None
        before = view.memory[..., 0].masked_fill(view.undecided.gather(1, view.columns), 0.0)
        return torch.where(self._committed(view), 1 + view.confidence, before).unsqueeze(-1)

    def select(self, view: UnmaskingView) -> Tensor:
        """Return what is committed and does not have to go at once."""
        return self._committed(view) & ~self._least_sure(view)

    def revoke(self, view: UnmaskingView) -> Tensor:
        """Return what goes of what earlier steps decided."""
        assert view.revocable is not None
        return view.revocable & self._least_sure(view)

    def _holds(self, view: UnmaskingView, ahead: int) -> Tensor:
        """Return (B,) bool, whether the step `ahead` is one of those that put back."""
        assert view.step_in_block is not None
        assert view.block_length is not None
        since = view.step_in_block + ahead - (view.block_length * self.begin).long()
        return (since >= 0) & (since < view.block_length)

    def _committed(self, view: UnmaskingView) -> Tensor:
        count = 1 + (self.number - 1) * self._holds(view, 0).long()
        return best(view._replace(quota=count), view.confidence)

    def _least_sure(self, view: UnmaskingView) -> Tensor:
        """Return (B, N) bool, what the next step would put back: this one does, so that the next one sees masks there."""
        assert view.memory is not None
        assert view.revocable is not None
        known = view.memory[..., 0]
        among = (view.revocable | view.eligible) & (known > 0)
        count = self.number * self._holds(view, 1).long()
        return best(view._replace(quota=count, eligible=among), -known)
