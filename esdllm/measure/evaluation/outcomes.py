"""What an evaluation returns: per contender and problem what was right, per contender what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from esdllm.config import DecodeConfig
from esdllm.measure.evaluation.statistics import ONE_BATCH, Interval, Speedup, agreement, difference, share, speedup
from esdllm.views import Problem

__all__ = ["BatchCost", "Evaluation", "Outcome", "pareto"]


@attrs.frozen
class BatchCost:
    """What one batch took one contender."""

    rows: int
    """prompts decoded together"""
    forwards: int
    """forward passes; each holds all rows"""
    layer_work: int
    """positions computed, summed over layers, steps and rows"""
    committed: int
    """positions decided, ends of text included"""
    seconds: float
    """wall-clock time of the steps"""


@attrs.frozen
class Outcome:
    """One contender's answers and what they took. Problems are in the evaluation's order."""

    name: str
    config: DecodeConfig
    right: tuple[bool, ...]
    """for every problem, whether the answer is right"""
    answers: tuple[str, ...]
    """for every problem, what was said"""
    tokens: tuple[tuple[int, ...], ...]
    """for every problem, the answer's tokens, up to its end of text"""
    batches: tuple[BatchCost, ...]

    @property
    def answer_tokens(self) -> int:
        """Tokens of all answers, ends of text not counted."""
        return sum(map(len, self.tokens))

    @property
    def forwards(self) -> int:
        """Forward passes in all."""
        return sum(batch.forwards for batch in self.batches)

    @property
    def forwards_per_answer(self) -> float:
        """Forward passes that an answer took part in, on average."""
        return sum(batch.forwards * batch.rows for batch in self.batches) / max(1, len(self.right))

    @property
    def tokens_per_forward(self) -> float:
        """Answer tokens per row and forward pass; ends of text not counted."""
        return self.answer_tokens / max(1, sum(batch.forwards * batch.rows for batch in self.batches))

    @property
    def canvas_tokens_per_forward(self) -> float:
        """Positions decided per row and forward pass, ends of text counted."""
        passes = sum(batch.forwards * batch.rows for batch in self.batches)
        return sum(batch.committed for batch in self.batches) / max(1, passes)

    @property
    def layer_work(self) -> int:
        """Positions computed, summed over layers, steps and rows."""
        return sum(batch.layer_work for batch in self.batches)

    @property
    def seconds(self) -> float:
        """Wall-clock time of the steps."""
        return sum(batch.seconds for batch in self.batches)

    @property
    def tokens_per_second(self) -> float:
        """Answer tokens per second, over all rows."""
        return self.answer_tokens / self.seconds if self.seconds else 0.0

    def agreement_with(self, other: Outcome) -> float:
        """Return the share of tokens that equal another's at the same place, the mean over the problems."""
        pairs = list(zip(self.tokens, other.tokens, strict=True))
        return sum(agreement(mine, theirs) for mine, theirs in pairs) / max(1, len(pairs))


@attrs.frozen
class Evaluation:
    """An evaluation: the problems, and each contender's outcome; the first is the reference of the others."""

    model: str
    suite: str
    split: str
    batch_size: int
    problems: tuple[Problem, ...]
    outcomes: tuple[Outcome, ...]
    environment: dict[str, Any]
    """versions, machine, device, dtype and threads"""

    @property
    def reference(self) -> Outcome:
        """The outcome that the others are compared with."""
        return self.outcomes[0]

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order of their first problems."""
        return list(dict.fromkeys(problem.task for problem in self.problems))

    def score(self, outcome: Outcome, task: str | None = None) -> Interval:
        """Return the share of right answers, of a task or of all problems."""
        return share(self._of(outcome.right, task))

    def loss(self, outcome: Outcome) -> Interval:
        """Return how much smaller the share of right answers is than the reference's, on the same problems."""
        return difference(self.reference.right, outcome.right)

    def agreement(self, outcome: Outcome) -> float:
        """Return the mean share of tokens that equal the reference's at the same place."""
        return outcome.agreement_with(self.reference)

    def compute_share(self, outcome: Outcome) -> float:
        """Return the positions computed in all layers, as a share of the reference's."""
        return outcome.layer_work / max(1, self.reference.layer_work)

    def speedup(self, outcome: Outcome) -> Speedup | None:
        """Return how many times faster than the reference, over the batches; None of one batch, which measures nothing."""
        mine, theirs = ([batch.seconds for batch in one.batches] for one in (outcome, self.reference))
        return speedup(mine, theirs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and scalars: what `esdllm eval --json` prints."""
        return {
            "model": self.model,
            "suite": self.suite,
            "split": self.split,
            "problems": len(self.problems),
            "batch_size": self.batch_size,
            "reference": self.reference.name,
            "environment": self.environment,
            "contenders": [self._contender(outcome) for outcome in self.outcomes],
        }

    def _contender(self, outcome: Outcome) -> dict[str, Any]:
        return {
            "name": outcome.name,
            "exact_match": self.score(outcome)._asdict(),
            "tasks": {task: self.score(outcome, task)._asdict() for task in self.tasks},
            "loss": self.loss(outcome)._asdict(),
            "agreement": self.agreement(outcome),
            "forwards": outcome.forwards,
            "forwards_per_answer": outcome.forwards_per_answer,
            "tokens_per_forward": outcome.tokens_per_forward,
            "canvas_tokens_per_forward": outcome.canvas_tokens_per_forward,
            "layer_work": outcome.layer_work,
            "compute_share": self.compute_share(outcome),
            "seconds": outcome.seconds,
            "tokens_per_second": outcome.tokens_per_second,
            "speedup": self._speedup(outcome),
            "config": outcome.config.to_dict(),
        }

    def _speedup(self, outcome: Outcome) -> dict[str, Any]:
        """Return the speed-up with all its keys, and why it has no value if so."""
        found = self.speedup(outcome)
        told = found._asdict() if found else dict.fromkeys(Speedup._fields)
        return {**told, "batches": len(outcome.batches), "note": None if found else ONE_BATCH}

    def _of(self, values: Sequence[bool], task: str | None) -> list[bool]:
        pairs = zip(self.problems, values, strict=True)
        return [value for problem, value in pairs if task is None or problem.task == task]


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of the points that no other beats in one coordinate without losing in the other; more is better.

    By the first coordinate, ascending. Of equal points the first is kept.
    """
    order = sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i))
    front: list[int] = []
    for i in order:
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front[::-1]
