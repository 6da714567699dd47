"""What a run will do, told before it and without a device: its plans, how many steps follow each, and what they cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import attrs
import torch

from esdllm.errors import InputError
from esdllm.measure.cost import Costing, Kind, Roofline, step_kind
from esdllm.plan import StepPlan
from esdllm.runtime.components import Components
from esdllm.views import ModelSpec

__all__ = ["Forecast", "PlanCount", "Prediction", "predict"]


@attrs.frozen
class PlanCount:
    """A distinct plan, and how many steps follow it."""

    steps: int
    window: str
    kind: Kind
    plan: StepPlan
    share: float
    """positions computed in all layers, as a share of those of a step that computes the canvas in every layer"""


@attrs.frozen
class Forecast:
    """The plans of a run and how many steps follow each, as far as it can be told without a device."""

    prompt: int
    batch: int
    canvas: int
    plans: tuple[PlanCount, ...]
    adaptive: bool
    """whether the logits decide how many tokens a step commits; the plan then assumes one"""

    @classmethod
    def of(
        cls, components: Components, spec: ModelSpec, prompt: int, batch: int, device: torch.device | None = None
    ) -> Forecast:
        """Return the forecast of decoding `batch` prompts of `prompt` tokens on a device, the CPU if None.

        Raises:
            InputError: prompt and answer exceed the model's context.
            ConfigError: settings that contradict each other.
        """
        if prompt + components.config.gen_length > spec.context:
            raise InputError(
                f"{prompt} prompt tokens and {components.config.gen_length} to generate exceed the model's context of "
                f"{spec.context}; lower --prompt-length or --gen-length"
            )
        canvas = components.layout(prompt, spec, batch, device)
        planner = components.planner(canvas, spec.n_layers)
        found: Counter[tuple[str, Kind, StepPlan]] = Counter()
        for step in planner.forecast():
            found[step.scope.window.value, step_kind(step), step.plan] += 1
        full = spec.n_layers * canvas.length
        plans = (
            PlanCount(n, window, kind, plan, plan.layer_work() / full) for (window, kind, plan), n in found.items()
        )
        adaptive = any(quota.counts is None for quota in planner.quotas())
        return cls(prompt, batch, canvas.length, tuple(plans), adaptive)

    @property
    def forwards(self) -> int:
        """Forward passes, one a step."""
        return sum(one.steps for one in self.plans)

    @property
    def refreshes(self) -> int:
        """Steps that compute their window in every layer to make the caches fresh."""
        return sum(one.steps for one in self.plans if one.kind == "refresh")

    @property
    def layer_share(self) -> float:
        """Positions computed in all layers, as a share of what vanilla decoding computes in as many steps."""
        return sum(one.steps * one.share for one in self.plans) / max(1, self.forwards)


class Prediction(NamedTuple):
    """The steps of one kind."""

    kind: str
    steps: int
    flops: float
    """of a step, the mean"""
    bytes: float
    """moved by a step, the mean"""
    seconds: float | None
    """of a step, the mean; None without a peak"""


def predict(counts: Sequence[PlanCount], costing: Costing, roofline: Roofline | None) -> list[Prediction]:
    """Return the cost of each kind of step."""
    groups: dict[str, list[PlanCount]] = defaultdict(list)
    for one in counts:
        groups[one.kind].append(one)
    return [_prediction(kind, group, costing, roofline) for kind, group in groups.items()]


def _prediction(kind: str, counts: Sequence[PlanCount], costing: Costing, roofline: Roofline | None) -> Prediction:
    steps = sum(one.steps for one in counts)
    costs = [(one.steps, costing.step(one.plan)) for one in counts]
    return Prediction(
        kind,
        steps,
        sum(n * cost.flops for n, cost in costs) / steps,
        sum(n * cost.bytes for n, cost in costs) / steps,
        None if roofline is None else sum(n * cost.seconds(roofline) for n, cost in costs) / steps,
    )
