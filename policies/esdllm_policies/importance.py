"""Importance scorers: which positions go on to deeper layers (ES-dLLM, arXiv 2603.10088, section 4.2)."""

from __future__ import annotations

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import ImportanceView, Site, uniform

_SITES: tuple[Site, ...] = ("hidden", "query", "key", "value")
_JUST_COMMITTED = 3.0
_MOST_CONFIDENT = 2.0
_STREAM = 2  # of noise, and one more a layer; the sampler draws from stream 0, unmasking policies from 1


def _site() -> Site:
    help = "tensor whose variation is scored, and where positions drop: hidden, query, key or value"
    field: Site = attrs.field(default="hidden", validator=validators.in_(_SITES), metadata={"help": help})
    return field


def variation(view: ImportanceView) -> Tensor:
    """Return (R, N) float32: mean |x - last| / (rms(last) + 1e-6), scaled down where a row's maximum exceeds 1."""
    x, last = view.x.float(), view.last.float()
    change = (x - last).abs().mean(-1) / (last.square().mean(-1).sqrt() + 1e-6)
    return change / change.amax(1, keepdim=True).clamp(min=1.0)


def most_confident(view: ImportanceView) -> Tensor:
    """Return (R, N) bool, each row's two highest confidences; never one of 0."""
    top = view.confidence.topk(min(2, view.confidence.shape[1]), dim=1)
    return torch.zeros_like(view.undecided).scatter(1, top.indices, top.values > 0)


@attrs.frozen
class HybridScorer:
    """alpha * confidence + (1 - alpha) * variation; what was just committed and the two most confident go first."""

    alpha: float = attrs.field(
        default=0.5,
        validator=[validators.ge(0.0), validators.le(1.0)],
        metadata={"help": "weight of confidence against variation, 0 to 1", "tune": (0.0, 0.25, 0.5, 0.75, 1.0)},
    )
    site: Site = _site()

    @property
    def keeps_history(self) -> bool:
        """Variation needs the last value."""
        return self.alpha < 1

    def score(self, view: ImportanceView) -> Tensor:
        """Return the published score; its bonus for the leftmost mask is the runtime's own guarantee."""
        score = self.alpha * view.confidence
        if self.alpha > 0:
            score = score + _MOST_CONFIDENT * most_confident(view)
        if self.alpha < 1:
            score = score + (1 - self.alpha) * variation(view) + _JUST_COMMITTED * view.committed
        return score


@attrs.frozen
class ConfidenceScorer:
    """Confidence alone: the hybrid at alpha 1; remembers nothing."""

    site: Site = _site()

    @property
    def keeps_history(self) -> bool:
        """Confidence is no comparison."""
        return False

    def score(self, view: ImportanceView) -> Tensor:
        """Return the confidence, the two highest raised."""
        return HybridScorer(alpha=1.0, site=self.site).score(view)


@attrs.frozen
class VariationScorer:
    """Variation alone: the hybrid at alpha 0."""

    site: Site = _site()

    @property
    def keeps_history(self) -> bool:
        """Variation needs the last value."""
        return True

    def score(self, view: ImportanceView) -> Tensor:
        """Return the variation, what was just committed raised."""
        return HybridScorer(alpha=0.0, site=self.site).score(view)


@attrs.frozen
class RandomScorer:
    """Chance: the baseline that shows what a score is worth; without `raised` not even what was just committed goes first."""

    raised: bool = attrs.field(
        default=True,
        metadata={"help": "whether what was just committed and the two most confident go first, as in the hybrid"},
    )
    site: Site = _site()

    @property
    def keeps_history(self) -> bool:
        """Chance compares nothing."""
        return False

    def score(self, view: ImportanceView) -> Tensor:
        """Return noise in (0, 1), of the row's seed, the step, the layer and the position."""
        noise = uniform(view.seeds, view.step, view.positions, 1, stream=_STREAM + view.layer).squeeze(-1).float()
        if not self.raised:
            return noise
        return noise + _MOST_CONFIDENT * most_confident(view) + _JUST_COMMITTED * view.committed
