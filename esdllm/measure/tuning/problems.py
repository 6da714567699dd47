"""The problems of a search: some to choose settings by, others to validate the choice on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from esdllm.measure.evaluation import of_split, taken
from esdllm.views import Problem

__all__ = ["Prompts", "parted"]


@attrs.frozen
class Prompts:
    """Prompts without answers, as a suite: nothing is right, so quality can only be agreement with a reference."""

    settings: Mapping[str, Any] = attrs.field(factory=dict)
    """a suite's suggestions: none"""

    def problems(self) -> Sequence[Problem]:
        """Return none; they are given."""
        return ()

    def correct(self, problem: Problem, answer: str) -> bool:
        """Return False."""
        return False


def parted(problems: Sequence[Problem], tasks: Sequence[str] = ()) -> tuple[list[Problem], list[Problem]]:
    """Return problems to tune on and problems to validate on, which share no prompt; of `tasks` only, if any is named.

    They are what the splits "tune" and "test" say, less what both hold in the first; where no problem names a split,
    each task's distinct prompts in turn.

    Raises:
        InputError: a task without problems, or one split without the other.
    """
    if any(problem.split for problem in problems):
        tune, test = (taken(of_split(problems, split), None, tasks) for split in ("tune", "test"))
        asked = {problem.prompt for problem in test}
        return [problem for problem in tune if problem.prompt not in asked], test
    distinct: dict[str, Problem] = {}
    for problem in taken(problems, None, tasks):
        distinct.setdefault(problem.prompt, problem)
    parts: tuple[list[Problem], list[Problem]] = ([], [])
    turns: dict[str, int] = {}
    for problem in distinct.values():
        turn = turns[problem.task] = turns.get(problem.task, -1) + 1
        parts[turn % 2].append(problem)
    return parts
