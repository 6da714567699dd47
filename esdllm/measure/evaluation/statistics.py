"""How sure what was measured is: 95 % intervals of a share, of the difference of two, and of a speed-up over batches."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["ONE_BATCH", "Interval", "Speedup", "agreement", "difference", "share", "speedup"]

ONE_BATCH = "one batch: not a measurement"
"""what stands in place of a speed-up that one batch alone could say"""

_CONFIDENCE = 0.95
_Z = 1.959963984540054  # 95 % of a normal distribution lies within


class Interval(NamedTuple):
    """A measured value and the 95 % interval around it."""

    value: float
    """what was measured"""
    low: float
    """lower end"""
    high: float
    """upper end"""


class Speedup(NamedTuple):
    """How many times faster than a reference, and the interval around it."""

    value: float
    """median over the batches of the reference's time over the contender's"""
    low: float
    """lower end"""
    high: float
    """upper end"""
    confidence: float
    """how surely the interval holds the median of all such batches: 0.95 or a little more from six batches on, else less"""

    @property
    def percent(self) -> int:
        """The confidence as tables name it: 95 where it is that or more, else rounded down."""
        return min(95, int(100 * self.confidence))


def share(right: Sequence[bool]) -> Interval:
    """Return the share of what is true, with Wilson's interval (1927), which stays in [0, 1] and is right near its ends."""
    n = len(right)
    if not n:
        return Interval(math.nan, 0.0, 1.0)
    p, spread = sum(right) / n, _Z * _Z / n
    middle = (p + spread / 2) / (1 + spread)
    half = _Z * math.sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    return Interval(
        p, min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half))
    )  # p: against rounding at 0 and 1


def difference(right: Sequence[bool], reference: Sequence[bool]) -> Interval:
    """Return how much larger the share of `right` is than that of `reference`, on the same problems in the same order.

    The interval is Agresti and Min's (2005): Wald's for matched pairs after half a pair is added to each of the four
    cells, so that two that never differed still have one.

    Raises:
        ValueError: the two are not of one length.
    """
    pairs = list(zip(right, reference, strict=True))
    n = len(pairs)
    if not n:
        return Interval(math.nan, -1.0, 1.0)
    won = sum(mine and not other for mine, other in pairs)
    lost = sum(other and not mine for mine, other in pairs)
    middle = (won - lost) / (n + 2)
    spread = (won + lost + 1) / (n + 2) - middle * middle
    half = _Z * math.sqrt(spread / (n + 2))
    return Interval((won - lost) / n, max(-1.0, middle - half), min(1.0, middle + half))


def speedup(seconds: Sequence[float], reference: Sequence[float]) -> Speedup | None:
    """Return how many times faster a contender is than a reference, batch by batch; None where there is but one batch.

    The value is the median of the batches' ratios. The interval is that of order statistics (H. A. David and H. N. Nagaraja,
    *Order Statistics*, 2003, section 7.1): from the k-th smallest ratio to the k-th largest, with the largest k at which it
    holds the median of the ratios' distribution, whatever that is, with a probability of 95 % or more. Fewer than six ratios
    are not enough for that: the interval is then from the smallest to the largest, and its confidence is 1 - 2^(1 - n).

    Raises:
        ValueError: the two are not of one length.
    """
    ratios = sorted(theirs / max(mine, 1e-9) for mine, theirs in zip(seconds, reference, strict=True))
    if len(ratios) < 2:
        return None
    k, confidence = _rank(len(ratios))
    return Speedup(statistics.median(ratios), ratios[k - 1], ratios[-k], confidence)


def _rank(n: int) -> tuple[int, float]:
    """Return the largest k at which the k-th smallest of n to the k-th largest make 95 %, else 1; and what they make."""
    k, below, term = 1, 1, n  # the binomials of n before the k-th in sum, and the k-th
    while 1 - (below + term) / 2 ** (n - 1) >= _CONFIDENCE:
        below, term, k = below + term, term * (n - k) // (k + 1), k + 1
    return k, 1 - below / 2 ** (n - 1)


def agreement(answer: Sequence[int], reference: Sequence[int]) -> float:
    """Return the share of places at which two answers have the same token, of the longer one's places; 1 if both are empty."""
    longer = max(len(answer), len(reference))
    same = sum(a == b for a, b in zip(answer, reference, strict=False))
    return same / longer if longer else 1.0
