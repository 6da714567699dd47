"""Importance scorers: which positions go on to deeper layers (ES-dLLM, arXiv 2603.10088, section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import (
    ImportanceScorer,
    ImportanceView,
    RememberingScorer,
    Signal,
    SignalScorer,
    Site,
    option,
    relative_variation,
    uniform,
)
from esdllm_policies.gpus import check_triton

_SITES: tuple[Site, ...] = ("hidden", "query", "key", "value")
JUST_COMMITTED = 3.0
_MOST_CONFIDENT = 2.0
_MOST = 1e30  # of a score's size in a mix
_STREAM = 2  # of noise, and one more per layer; the sampler draws from stream 0, unmasking policies from 1


def site_option() -> Any:
    """Return the option that says where positions are scored and dropped."""
    help = "tensor whose variation is scored, and where positions drop: hidden, query, key or value"
    return option(help, validators.in_(_SITES), default="hidden")


def variation(view: ImportanceView) -> Tensor:
    """Return (R, N) float32: `relative_variation`, scaled down where a row's maximum exceeds 1."""
    change = relative_variation(view.x, view.last)
    return change / change.amax(1, keepdim=True).clamp(min=1.0)


def most_confident(view: ImportanceView) -> Tensor:
    """Return (R, N) bool, each row's two highest confidences; never one of 0."""
    top = view.confidence.topk(min(2, view.confidence.shape[1]), dim=1)
    return torch.zeros_like(view.undecided).scatter(1, top.indices, top.values > 0)


def hybrid(view: ImportanceView, alpha: float) -> Tensor:
    """Return the published score (R, N) float32; its bonus for the leftmost mask is the runtime's own guarantee."""
    score = alpha * view.confidence
    if alpha > 0:
        score = score + _MOST_CONFIDENT * most_confident(view)
    if alpha < 1:
        score = score + (1 - alpha) * variation(view) + JUST_COMMITTED * view.committed
    return score


@attrs.frozen
class HybridScorer:
    """alpha * confidence + (1 - alpha) * variation; what was just committed and the two most confident go first."""

    alpha: float = option(
        "weight of confidence against variation, 0 to 1",
        validators.ge(0.0),
        validators.le(1.0),
        default=0.5,
        tune=(0.0, 0.25, 0.5, 0.75, 1.0),
    )
    site: Site = site_option()
    fused: bool = option(
        "score by Triton kernels, two for twenty of torch's, which needs a CUDA GPU; not measured on one", default=False
    )

    @property
    def keeps_history(self) -> bool:
        """Variation needs the last value."""
        return self.alpha < 1

    def score(self, view: ImportanceView) -> Tensor:
        """Return the published score. Inside a compiled step the compiler fuses it."""
        if not self.fused or view.x.is_meta or torch.compiler.is_compiling():
            return hybrid(view, self.alpha)
        check_triton("importance.fused", view.x)
        from esdllm_policies.fused import hybrid_score  # imports triton, which only GPUs have

        return hybrid_score(
            view.x, view.last, view.confidence, view.committed, self.alpha, _MOST_CONFIDENT, JUST_COMMITTED
        )


@attrs.frozen
class ConfidenceScorer:
    """Confidence alone: the hybrid at alpha 1; remembers nothing."""

    site: Site = site_option()

    @property
    def keeps_history(self) -> bool:
        """Confidence is no comparison."""
        return False

    def score(self, view: ImportanceView) -> Tensor:
        """Return the confidence, the two highest raised."""
        return hybrid(view, alpha=1.0)


@attrs.frozen
class VariationScorer:
    """Variation alone: the hybrid at alpha 0."""

    site: Site = site_option()

    @property
    def keeps_history(self) -> bool:
        """Variation needs the last value."""
        return True

    def score(self, view: ImportanceView) -> Tensor:
        """Return the variation, what was just committed raised."""
        return hybrid(view, alpha=0.0)


@attrs.frozen
class RandomScorer:
    """Chance: the baseline that shows what a score is worth; without `raised` not even what was just committed goes first."""

    raised: bool = option(
        "whether what was just committed and the two most confident go first, as in the hybrid", default=True
    )
    site: Site = site_option()

    @property
    def keeps_history(self) -> bool:
        """Chance compares nothing."""
        return False

    def score(self, view: ImportanceView) -> Tensor:
        """Return noise in (0, 1), of the row's seed, the step, the layer and the position."""
        noise = uniform(view.seeds, view.step, view.positions, 1, stream=_STREAM + view.layer).squeeze(-1).float()
        if not self.raised:
            return noise
        return noise + _MOST_CONFIDENT * most_confident(view) + JUST_COMMITTED * view.committed


@attrs.frozen
class EntropyScorer:
    """Doubt: the entropy of "the candidate or another token", the positions in most doubt first, or the surest.

    Of the candidate's probability c that is the entropy of two outcomes, h(c) = -c ln c - (1 - c) ln(1 - c), divided by ln 2.
    It is never more than the distribution's own entropy H, which `of = "distribution"` takes, as H / (1 + H); `of = "margin"`
    takes 1 less the gap between the two most probable tokens. Unlike confidence h is not monotone: at c = 1/2 the next commit
    decides most. Entropy as a signal of what to compute: EntropyCache (arXiv 2603.18489).
    """

    prefer: Literal["unsure", "sure"] = option(
        "which masked positions go first: unsure or sure",
        validators.in_(("unsure", "sure")),
        default="unsure",
        tune=("unsure", "sure"),
    )
    of: Literal["candidate", "distribution", "margin"] = option(
        "what doubt is taken of: the candidate's probability, the distribution, or the margin of the two most probable tokens",
        validators.in_(("candidate", "distribution", "margin")),
        default="candidate",
    )
    site: Site = site_option()

    @property
    def keeps_history(self) -> bool:
        """Doubt is no comparison."""
        return False

    @property
    def signals(self) -> tuple[Signal, ...]:
        """What it is taken of beyond confidence."""
        signals: Mapping[str, tuple[Signal, ...]] = {"distribution": ("entropy",), "margin": ("margin",)}
        return signals.get(self.of, ())

    def score(self, view: ImportanceView) -> Tensor:
        """Return a score in [0, 1] for masked positions that have had logits, 0 for others; what was just committed raised."""
        known, doubt = view.undecided & (view.confidence > 0), self._doubt(view)
        score = (doubt if self.prefer == "unsure" else 1 - doubt) * known
        return score + JUST_COMMITTED * view.committed

    def _doubt(self, view: ImportanceView) -> Tensor:
        """Return doubt (R, N) in [0, 1]."""
        if view.entropy is not None:
            return view.entropy / (1 + view.entropy)
        if view.margin is not None:
            return 1 - view.margin
        confidence = view.confidence.clamp(0.0, 1.0)  # rounding can leave it a digit above 1
        doubt: Tensor = torch.special.entr(confidence) + torch.special.entr(1 - confidence)
        return doubt / math.log(2)


@attrs.frozen
class WeightedScorer:
    """One part of a mix."""

    scorer: ImportanceScorer = option("the scorer", kind="importance")
    weight: float = option("what its score is multiplied by", validators.gt(0.0), default=1.0)


def _check_parts(instance: Any, attribute: Any, parts: Sequence[Any]) -> None:
    if not parts:
        raise ValueError("parts = [] mixes nothing; give at least one scorer")
    if any(not isinstance(part, WeightedScorer) for part in parts):
        raise ValueError(f"parts = {parts!r}: give WeightedScorers, or build the mix from a configuration")
    sites = sorted({part.scorer.site for part in parts})
    if len(sites) > 1:
        raise ValueError(
            f"the parts score at different sites, {' and '.join(sites)}; positions drop at one: set every part's site to it"
        )


_HALVES: tuple[Mapping[str, Any], ...] = (
    {"name": "variation", "weight": 0.5},
    {"name": "confidence", "weight": 0.5},
)


@attrs.frozen
class MixScorer:
    """A weighted sum of other scorers, whatever plugin they come from."""

    parts: Sequence[WeightedScorer] = option(
        "scorers as tables: name, weight, and the scorer's own options",
        _check_parts,
        default=_HALVES,
        converter=tuple,
        part=WeightedScorer,
    )

    @property
    def site(self) -> Site:
        """The parts' common site."""
        return self.parts[0].scorer.site

    @property
    def keeps_history(self) -> bool:
        """Whether any part compares with the last value."""
        return any(part.scorer.keeps_history for part in self.parts)

    @property
    def memory(self) -> int:
        """What all parts remember of a position, one behind the other."""
        return sum(_memory(part.scorer) for part in self.parts)

    @property
    def signals(self) -> frozenset[Signal]:
        """What any part reads of logits."""
        return frozenset(
            signal for part in self.parts if isinstance(part.scorer, SignalScorer) for signal in part.scorer.signals
        )

    def remember(self, view: ImportanceView) -> Tensor:
        """Return what each part that remembers makes of its own numbers."""
        kept = [scorer.remember(seen) for scorer, seen in self._shown(view) if isinstance(scorer, RememberingScorer)]
        return torch.cat(kept, dim=-1)

    def score(self, view: ImportanceView) -> Tensor:
        """Return the sum of weight times score, each product within what float32 can hold, so that no sum of them is NaN."""
        first, *others = (
            (min(part.weight, _MOST) * scorer.score(seen)).clamp(-_MOST, _MOST)
            for part, (scorer, seen) in zip(self.parts, self._shown(view), strict=True)
        )
        return sum(others, start=first)

    def _shown(self, view: ImportanceView) -> list[tuple[ImportanceScorer, ImportanceView]]:
        """Return each part's scorer and what it sees: what it remembers itself and asks for itself, as if it were alone."""
        scorers = [part.scorer for part in self.parts]
        ends = accumulate(map(_memory, scorers))
        return [(scorer, _own(view, scorer, end)) for scorer, end in zip(scorers, ends, strict=True)]


def _own(view: ImportanceView, scorer: ImportanceScorer, end: int) -> ImportanceView:
    """Return what a part of a mix sees, whose numbers end at `end` of those that the mix remembers."""
    size, signals = _memory(scorer), scorer.signals if isinstance(scorer, SignalScorer) else ()
    return view._replace(
        memory=None if view.memory is None or not size else view.memory[..., end - size : end],
        entropy=view.entropy if "entropy" in signals else None,
        margin=view.margin if "margin" in signals else None,
    )


def _memory(scorer: ImportanceScorer) -> int:
    return scorer.memory if isinstance(scorer, RememberingScorer) else 0
