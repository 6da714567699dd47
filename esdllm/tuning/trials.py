"""What a tuning returns: the trials, the setting chosen, and how it fares on problems that it was not chosen by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from esdllm.config import DecodeConfig
from esdllm.evaluation import Interval, Outcome, Report
from esdllm.tuning.goal import Goal

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
    validation: Report
    """the reference, the base and the chosen one, side by side on problems that none was chosen by"""

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
        report, outcome, loss = self.validation, self.outcome, self.loss
        lines = [
            f"Tuned by esdllm for {report.model} on {report.suite}: {len(self.trials)} settings tried, at most "
            f"{100 * self.goal.max_loss:g} % of quality to lose.",
            f"On {len(report.problems)} other problems: {100 * report.score(outcome).value:.1f} % right, "
            f"{100 * loss.value:+.1f} points lost against {report.reference.name} "
            f"[{100 * loss.low:+.1f}, {100 * loss.high:+.1f}],",
            f"{100 * report.agreement(outcome):.1f} % of tokens the same, {outcome.tokens_per_forward:.2f} tokens per forward, "
            f"{100 * report.compute_share(outcome):.1f} % of its computation, {report.speedup(outcome):.1f} times its speed.",
        ]
        if self.goal.quality == "agreement":
            lines[1] = f"On {len(report.problems)} other prompts: {100 * loss.value:.1f} % of tokens differ,"
        return "".join(f"# {line}\n" for line in lines) + "\n" + self.config.to_toml()

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and scalars: what `esdllm tune --json` prints."""
        return {
            "goal": attrs.asdict(self.goal),
            "chosen": attrs.asdict(self.chosen),
            "loss": self.loss._asdict(),
            "holds": self.holds,
            "config": self.config.to_dict(),
            "trials": [attrs.asdict(trial) for trial in self.trials],
            "validation": self.validation.to_dict(),
        }
