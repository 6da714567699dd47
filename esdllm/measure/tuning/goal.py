"""What tuning is for: as little time as possible, at no more than so much loss."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Literal, get_args

import attrs
from attrs import validators

from esdllm.measure.evaluation import Interval, Outcome, difference
from esdllm.measure.evaluation.statistics import agreement

__all__ = ["Cost", "Goal", "Quality"]

Quality = Literal["answers", "agreement"]
"""What quality is: the share of right answers, or of tokens that equal the reference's (where no answer is known)."""

Cost = Literal["work", "time"]
"""What is to be small: positions computed in all layers, which is the same everywhere; or seconds on this machine."""


@attrs.frozen
class Goal:
    """The tolerance, and how quality and cost are measured.

    Raises:
        ValueError: a tolerance that is no share below 1, or an unknown quality or cost.
    """

    max_loss: float = attrs.field(default=0.01, validator=[validators.ge(0.0), validators.lt(1.0)])
    """how much smaller than the reference's quality, itself a share, quality may be: 0.01 is one point of a hundred"""
    quality: Quality = attrs.field(default="answers", validator=validators.in_(get_args(Quality)))
    cost: Cost = attrs.field(default="time", validator=validators.in_(get_args(Cost)))

    def quality_of(self, outcome: Outcome, reference: Outcome) -> float:
        """Return the share of right answers, or of tokens that equal the reference's."""
        if self.quality == "agreement":
            return outcome.agreement_with(reference)
        return sum(outcome.right) / len(outcome.right)

    def loss(self, outcome: Outcome, reference: Outcome) -> Interval:
        """Return the quality lost against the reference, on the same problems, and its 95 % interval.

        For answers see `difference`; for agreement it is Student's, of a mean over the problems.
        """
        if self.quality == "agreement":
            pairs = zip(outcome.tokens, reference.tokens, strict=True)
            return _mean([1 - agreement(mine, theirs) for mine, theirs in pairs])
        return difference(reference.right, outcome.right)

    def cost_of(self, outcome: Outcome) -> float:
        """Return the positions computed, or the seconds."""
        return float(outcome.layer_work) if self.cost == "work" else outcome.seconds

    def speedup(self, outcome: Outcome, reference: Outcome) -> float:
        """Return the reference's cost over the outcome's."""
        return self.cost_of(reference) / max(self.cost_of(outcome), 1e-9)

    def allows(self, loss: float) -> bool:
        """Return whether a loss is within the tolerance."""
        return loss <= self.max_loss + 1e-9


def _mean(shares: Sequence[float]) -> Interval:
    """Return the mean and Student's 95 % interval around it, within [0, 1]; all of that for fewer than three shares."""
    value, freedom = sum(shares) / len(shares), len(shares) - 1
    if freedom < 2:
        return Interval(value, 0.0, 1.0)
    half = _student(freedom) * statistics.stdev(shares) / math.sqrt(len(shares))
    return Interval(value, max(0.0, value - half), min(1.0, value + half))


def _student(freedom: int) -> float:
    """Return Student's 97.5 % quantile to 3 % from 2 degrees of freedom on (Abramowitz and Stegun, 26.7.5)."""
    z = statistics.NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(z + sum(term / freedom**power for power, term in enumerate(terms, 1)))
