"""What a tuning returns: the trials, the setting chosen, and how it fares on problems that it was not chosen by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from esdllm.config import DecodeConfig
from esdllm.measure.evaluation import ONE_BATCH, Evaluation, Interval, Outcome
from esdllm.measure.tuning.goal import Goal

__all__ = ["Trial", "Tuning"]


@attrs.frozen
class Trial:
    """One setting tried."""

    settings: Mapping[str, Any]
    """what it changes in the base configuration"""
    quality: float
    """share of right answers, or agreement with the reference"""
    loss: float
    """quality lost against the reference"""
    speedup: float
    """the reference's cost over its own"""


@attrs.frozen
class Tuning:
    """A search's end."""

    goal: Goal
    trials: tuple[Trial, ...]
    chosen: Trial
    """the cheapest within the tolerance on the problems of the search"""
    config: DecodeConfig
    """its configuration"""
    validation: Evaluation
    """the reference, the base and the chosen one, side by side on problems that none was chosen by"""
    problems: int
    """how many it was chosen by"""
    seed: int
    """of the search"""

    @property
    def outcome(self) -> Outcome:
        """The chosen one's outcome in the validation."""
        return self.validation.outcomes[-1]

    @property
    def loss(self) -> Interval:
        """The quality lost in the validation."""
        return self.goal.loss(self.outcome, self.validation.reference)

    @property
    def holds(self) -> bool:
        """Whether the loss is within the tolerance in the validation too."""
        return self.goal.allows(self.loss.value)

    def to_toml(self) -> str:
        """Return the chosen configuration as `--config` reads it, what was measured of it in comments above."""
        evaluation, outcome, loss = self.validation, self.outcome, self.loss
        versions, (low, high) = evaluation.environment, (100 * loss.low, 100 * loss.high)
        if self.goal.quality == "agreement":
            right = f"{100 * evaluation.agreement(outcome):.1f} % of tokens the same as {evaluation.reference.name}'s"
        else:
            right = f"{100 * evaluation.score(outcome).value:.1f} % right"
        lines = [
            f"Tuned by esdllm {versions['esdllm']} for {evaluation.model} on {evaluation.suite}, "
            f"from {evaluation.outcomes[1].name}: {len(self.trials)} settings",
            f"tried on {self.problems} problems (seed {self.seed}), for the least {self.goal.cost} at a loss of at most "
            f"{100 * self.goal.max_loss:g} points.",
            f"On {len(evaluation.problems)} other problems: {right}, {100 * loss.value:+.1f} points lost against "
            f"{evaluation.reference.name}",
            f"[{low:+.1f}, {high:+.1f}], {100 * evaluation.compute_share(outcome):.1f} % of its computation, "
            f"{_speed(evaluation, outcome)}, {outcome.tokens_per_forward:.2f} tokens per forward,",
            f"in batches of {evaluation.batch_size} with torch {versions['torch']}, {versions['threads']} threads, on "
            f"{versions['device']} ({versions['machine']}) in {versions['dtype']}.",
        ]
        return "".join(f"# {' '.join(line.split())}\n" for line in lines) + "\n" + self.config.to_toml()

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and scalars: what `esdllm tune --json` prints."""
        return {
            "goal": attrs.asdict(self.goal),
            "chosen": attrs.asdict(self.chosen),
            "loss": self.loss._asdict(),
            "holds": self.holds,
            "config": self.config.to_dict(),
            "trials": [attrs.asdict(trial) for trial in self.trials],
            "problems": self.problems,
            "seed": self.seed,
            "validation": self._validation(),
        }

    def _validation(self) -> dict[str, Any]:
        """Return the evaluation; without what is right, where nothing says so."""
        found = self.validation.to_dict()
        if self.goal.quality == "agreement":
            for contender in found["contenders"]:
                for key in ("exact_match", "tasks", "loss"):
                    del contender[key]
        return found


def _speed(evaluation: Evaluation, outcome: Outcome) -> str:
    found = evaluation.speedup(outcome)
    if found is None:
        return f"speed-up: {ONE_BATCH}"
    return f"{found.value:.1f} times its speed [{found.low:.1f}, {found.high:.1f}]"
