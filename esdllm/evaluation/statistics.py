"""How sure a measured share is: 95 % intervals of a share, and of the difference of two on the same problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Interval", "agreement", "difference", "share"]

_Z = 1.959963984540054  # 95 % of a normal distribution lies within


class Interval(NamedTuple):
    """A measured value and the 95 % interval around it."""

    value: float
    """what was measured"""
    low: float
    """lower end"""
    high: float
    """upper end"""


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


def agreement(answer: Sequence[int], reference: Sequence[int]) -> float:
    """Return the share of places at which two answers have the same token, of the longer one's places; 1 if both are empty."""
    longer = max(len(answer), len(reference))
    same = sum(a == b for a, b in zip(answer, reference, strict=False))
    return same / longer if longer else 1.0
