"""How much of what could be tried is tried: examples that a profile scales, products of which the check takes the pairs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any

import pytest
from hypothesis import settings

PROFILES = {"quick": 10, "check": 30, "full": 500}
"""examples that each of hypothesis's profiles draws, in percent of those that a test names"""


def register() -> None:
    """Make the profiles known to hypothesis, and the check's the one in force."""
    for name, percent in PROFILES.items():
        settings.register_profile(name, deadline=None, max_examples=percent)  # a shared machine is slow at times
    settings.load_profile("check")


def examples(count: int) -> settings:
    """Return settings that draw `count` examples, scaled by the profile in force."""
    return settings(max_examples=max(5, count * settings().max_examples // 100))


def pairwise(cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Return cases as parameters, `full` but for some in which every two values meet that meet in any."""
    every = list(cases)
    kept = covering(every)
    return [pytest.param(*case, marks=() if at in kept else pytest.mark.full) for at, case in enumerate(every)]


def covering(cases: Sequence[tuple[Any, ...]]) -> set[int]:
    """Return the places of few cases that hold every pair of values of all; the most new ones first."""
    pairs = [set(combinations(enumerate(case), 2)) for case in cases]
    missing, kept = set().union(*pairs), set()
    while missing:
        best = max(range(len(cases)), key=lambda at: len(pairs[at] & missing))
        kept.add(best)
        missing -= pairs[best]
    return kept
