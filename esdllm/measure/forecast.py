"""What a run will do, told before it and without a device: its plans, how many steps follow each, and what they cost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import attrs
import torch

from esdllm.errors import InputError
from esdllm.measure.cost import Costing, Kind, Roofline, step_kind
from esdllm.plan import BlockCausal, Step, StepPlan, Window
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
    """positions computed in all layers, as a share of those of a step that computes all that is seen in every layer"""


@attrs.frozen
class Forecast:
    """The plans of a run and how many steps follow each, as far as it can be told without a device."""

    prompt: int
    batch: int
    canvas: int
    plans: tuple[PlanCount, ...]
    adaptive: bool
    """whether the logits decide how many tokens a step commits; the plan then assumes one"""
    filling: int = 0
    """masks behind the answer, which fill a block-causal model's last block"""
    attention: BlockCausal | None = None
    """which positions a position sees; None for all"""

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
        found: Counter[tuple[str, Kind, StepPlan, int]] = Counter()
        for step in planner.forecast():
            seen = canvas.length if step.sight is None else step.sight
            found[_window(step, components.cache.persistent), step_kind(step), step.plan, seen] += 1
        plans = (
            PlanCount(n, window, kind, plan, plan.layer_work() / (spec.n_layers * seen))
            for (window, kind, plan, seen), n in found.items()
        )
        adaptive = any(quota.counts is None for quota in planner.quotas())
        filling = len(canvas.masks[0]) - components.config.gen_length
        return cls(prompt, batch, canvas.length, tuple(plans), adaptive, filling, spec.attention)

    @property
    def forwards(self) -> int:
        """Forward passes, one per step."""
        return sum(one.steps for one in self.plans)

    @property
    def refreshes(self) -> int:
        """Steps that compute their window in every layer to make the caches fresh."""
        return sum(one.steps for one in self.plans if one.kind == "refresh")

    @property
    def layer_share(self) -> float:
        """Positions computed in all layers, as a share of what vanilla decoding computes in as many steps."""
        computed = [one.steps * one.plan.layer_work() for one in self.plans]
        whole = [work / one.share for work, one in zip(computed, self.plans, strict=True)]
        return sum(computed) / max(1, sum(whole))


def _window(step: Step, persistent: bool) -> str:
    """Return what to call a step's window; in a block-causal model by what it does there."""
    if step.sight is None:
        return step.scope.window.value
    if step.plan.leads:
        return "keys, next token"
    if not persistent:
        return Window.PREFIX.value
    if step.plan.written is not None:
        return "keys + block"
    return Window.BLOCK.value if step.scope.window is Window.CANVAS else step.scope.window.value


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
