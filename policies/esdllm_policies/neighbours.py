"""Unmasking policies that go by where positions stand to each other: near a sure one, or in one run of masks."""

from __future__ import annotations

import attrs
import torch
from attrs import validators
from torch import Tensor
from torch.nn.functional import max_pool1d, pad

from esdllm import UnmaskingView, option
from esdllm_policies.unmasking import Deciding, best_or_more, chosen_or_best, probability_option

__all__ = ["HierarchicalRemaskUnmasking", "HierarchicalUnmasking", "LocalLeapUnmasking"]


@attrs.frozen
class LocalLeapUnmasking(Deciding):
    """All at least as confident as the threshold; near those a relaxed threshold suffices; and always the best one.

    LocalLeap, arXiv 2510.07081: what this step is sure of anchors what stands within `radius` of it, on either side. What was
    decided before is no anchor.
    """

    threshold: float = probability_option(0.9, "confidence from which on a position is committed, and is an anchor")
    relaxed_threshold: float = probability_option(
        0.75, "confidence from which on a position near an anchor is committed; at most the threshold"
    )
    radius: int = option(
        "how far from an anchor is near, in positions", validators.ge(0), default=4, tune=(1, 2, 4, 8, 16)
    )

    def __attrs_post_init__(self) -> None:
        if self.relaxed_threshold > self.threshold:
            raise ValueError(
                f"relaxed_threshold = {self.relaxed_threshold} must be at most threshold = {self.threshold}"
            )

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the anchors and what is nearly as sure around them, or the best one."""
        anchors = view.eligible & (view.confidence >= self.threshold)
        everywhere = torch.zeros_like(view.undecided).scatter(1, view.columns, anchors)
        spread = max_pool1d(everywhere.float().unsqueeze(1), 2 * self.radius + 1, 1, self.radius).squeeze(1)
        near = spread.gather(1, view.columns) > 0
        return chosen_or_best(near & (view.confidence >= self.relaxed_threshold), view.confidence, view.eligible)


@attrs.frozen
class HierarchicalUnmasking(Deciding):
    """The best of each run of masks if it is above a low threshold, all above a high one, and always the best of all.

    dInfer, arXiv 2510.08666: what is decided in the middle of a run cuts it in two, so that a block of n masks can be decided in
    some log n steps. Of equal ones of a run all are taken. A mask that early skipping left without logits is part of its run.
    """

    threshold: float = probability_option(
        1.0, "confidence above which a position is committed wherever it stands; at 1 none is (dInfer's scripts: 0.76)"
    )
    low_threshold: float = probability_option(
        0.4,
        "confidence above which the best of a run is committed (dInfer's scripts: 0.62)",
        (0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    )

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the best of the runs, and all that is sure."""
        chosen = _best_of_runs(view, view.undecided, view.eligible) & (view.confidence > self.low_threshold)
        return best_or_more(chosen | (view.confidence > self.threshold), view.confidence, view.eligible)


def _best_of_runs(view: UnmaskingView, members: Tensor, among: Tensor) -> Tensor:
    """Return (B, N) bool, of each run of neighbours that are `members` (B, L) the best `among` (B, N); all of equal ones."""
    before = pad(members[:, :-1], (1, 0))
    runs = (members & ~before).cumsum(1).gather(1, view.columns)  # each position's, from 1
    confidence = view.confidence.masked_fill(~among, -1.0)
    most = confidence.new_full((len(runs), members.shape[1] + 1), -1.0).scatter_reduce(1, runs, confidence, "amax")
    return among & (confidence == most.gather(1, runs))


@attrs.frozen
class HierarchicalRemaskUnmasking(Deciding):
    """Hierarchical decoding that takes back what it is no longer sure of, and decides one more than that at every step.

    dInfer, arXiv 2510.08666, `get_transfer_index_hierarchy_remask` in its code. A decided position whose most probable token
    falls below `remask_threshold` counts as a mask: if it is chosen it takes that token, and if not it is a mask again.
    """

    threshold: float = probability_option(0.9, "confidence above which a position is committed wherever it stands")
    low_threshold: float = probability_option(
        0.4, "confidence above which the best of a run is committed", (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    )
    remask_threshold: float = probability_option(
        0.4, "confidence below which what is decided is looked at again", (0.1, 0.2, 0.3, 0.4, 0.5)
    )
    revisions: int = option("how often a position may be put back", validators.ge(1), default=4)

    @property
    def editing_steps(self) -> int:
        """A block without masks is done."""
        return 0

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the masks that are chosen."""
        return view.eligible & self._chosen(view)

    def edit(self, view: UnmaskingView) -> Tensor:
        """Return what is decided and chosen again."""
        return self._weak(view) & self._chosen(view)

    def revoke(self, view: UnmaskingView) -> Tensor:
        """Return what is decided, weak and not chosen."""
        return self._weak(view) & ~self._chosen(view)

    def _weak(self, view: UnmaskingView) -> Tensor:
        """Return (B, N) bool, what is decided and counts as a mask."""
        assert view.revocable is not None
        assert view.editable is not None
        return view.revocable & view.editable & (view.confidence < self.remask_threshold)

    def _chosen(self, view: UnmaskingView) -> Tensor:
        """Return (B, N) bool, the best of the runs, all that is sure, and as many more as one beyond the weak."""
        weak = self._weak(view)
        among = view.eligible | weak
        members = view.undecided | torch.zeros_like(view.undecided).scatter(1, view.columns, weak)
        best = _best_of_runs(view, members, among) & (view.confidence > self.low_threshold)
        chosen = best | (among & (view.confidence > self.threshold))
        order = view.confidence.masked_fill(~among, -1.0) + 2.0 * chosen  # what is chosen comes first
        ranked = order.sort(dim=1, descending=True, stable=True).indices
        least = torch.arange(order.shape[1], device=order.device) <= weak.sum(1, keepdim=True)
        return chosen | (torch.zeros_like(among).scatter(1, ranked, least) & among)
