"""An unmasking policy that shows the model what it drafted far right, while it decides from the left."""

from __future__ import annotations

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import UnmaskingView, option
from esdllm_policies.unmasking import Deciding, probability_option

__all__ = ["DcLeapUnmasking"]


@attrs.frozen
class DcLeapUnmasking(Deciding):
    """The longest run of confident positions from the first mask on; farther right the model sees what it would have said.

    DC-Leap, arXiv 2607.20467. The first `window` positions from the first mask on are the leader: of these the run is
    committed, its first one at least. A candidate above `draft_threshold`, up to twice `window` from the first mask, is a draft;
    drafts behind the leader stand in the model's input in the place of masks, until a surer candidate replaces them or the
    leader reaches them. The answer is best one block: drafts do not leave it.
    """

    threshold: float = probability_option(0.7, "confidence above which the run goes on")
    draft_threshold: float = probability_option(
        0.98, "confidence above which a candidate is shown as a draft", (0.8, 0.9, 0.95, 0.98)
    )
    window: int = option(
        "positions of the leader, and of the drafts behind it", validators.ge(1), default=128, tune=(16, 32, 64, 128)
    )

    @property
    def memory(self) -> int:
        """One more than the draft's token; 0 is none."""
        return 1

    def remember(self, view: UnmaskingView) -> Tensor:
        """Return the drafts (B, N, 1), those of this step among them."""
        assert view.memory is not None
        near = view.columns < _first(view.undecided) + 2 * self.window
        sure = view.undecided.gather(1, view.columns) & near & (view.confidence > self.draft_threshold)
        return torch.where(sure, (view.tokens + 1).float(), view.memory[..., 0]).unsqueeze(-1)

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the run, or the first mask. A mask without logits, or one that may not be committed yet, ends it."""
        leader = view.columns < _first(view.undecided) + self.window
        sure = view.eligible & leader & (view.confidence > self.threshold)
        masks = view.undecided.cumsum(1).gather(1, view.columns)  # up to each position, on the whole canvas
        run = sure & (sure.cumsum(1) == masks)
        return run | (view.eligible & (view.eligible.cumsum(1) == 1))

    def draft(self, view: UnmaskingView) -> Tensor:
        """Return the drafts behind what is the leader after this step."""
        assert view.memory is not None
        decided = torch.zeros_like(view.undecided).scatter(1, view.columns, self.select(view))
        behind = view.columns - _first(view.undecided & ~decided) - self.window
        return (view.memory[..., 0].long() - 1).masked_fill((behind < 0) | (behind >= self.window), -1)


def _first(undecided: Tensor) -> Tensor:
    """Return (B, 1) int64, each row's first undecided column; the canvas' length if it has none."""
    return (undecided.cumsum(1) == 0).sum(1, keepdim=True)
