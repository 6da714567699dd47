"""Measuring some steps of a run instead of all: steps of the same plan do the same work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from esdllm.errors import InputError
from esdllm.plan import Facts, Step

__all__ = ["refuse", "sample"]


def sample(steps: Sequence[Step], number: int | None) -> list[tuple[Step, float]]:
    """Return at most `number` steps of each plan, in their order, each with the number of steps that it stands for.

    They lie evenly among those of their plan, the first one always among them; all steps, each for itself, if None.
    """
    if number is None:
        return [(step, 1.0) for step in steps]
    total, seen = Counter(step.plan for step in steps), Counter[object]()
    found = []
    for step in steps:
        count, place = total[step.plan], seen[step.plan]
        seen[step.plan] += 1
        taken = min(number, count)
        if place in {count * k // taken for k in range(taken)}:
            found.append((step, count / taken))
    return found


def refuse() -> Facts:
    """Stand in for reading the device while a whole run is planned before its first step.

    Raises:
        InputError: always.
    """
    raise InputError(
        "--sample plans all steps before the first one, but here the plan depends on what is decoded; give early_stop=false, "
        "a fixed number of tokens per step and a refresh at each block's first step, or leave out --sample"
    )
