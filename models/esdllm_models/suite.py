"""The suite of the tiny checkpoints: problems of their five tasks, held out from their training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from esdllm import Problem
from esdllm.measure.evaluation import JsonlSuite

_HELD_OUT = JsonlSuite(Path(__file__).parent / "tiny" / "problems.jsonl")


@attrs.frozen
class TinySuite:
    """Held-out problems of the shipped tiny checkpoints: describe, lookup, lists, story, code; exact match."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """Lengths that every answer fits into."""
        return {"gen_length": 64, "block_length": 16}

    def problems(self) -> Sequence[Problem]:
        """Return 200 problems of each task to tune on, then 300 to test on."""
        return _HELD_OUT.problems()

    def correct(self, problem: Problem, answer: str) -> bool:
        """Return whether the answer is the right one to the letter, white space around it aside."""
        return _HELD_OUT.correct(problem, answer)
