"""A problem of a suite."""

from __future__ import annotations

import attrs

__all__ = ["Problem"]


@attrs.frozen
class Problem:
    """A question with one right answer."""

    prompt: str
    """what the model is asked"""
    answer: str
    """what it should say"""
    task: str = "all"
    """kind of problem, for which a score is given by itself"""
    split: str = ""
    """"tune" for problems that settings may be chosen by, "test" for those that scores are taken on; empty if not said"""
