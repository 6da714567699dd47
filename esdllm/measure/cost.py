"""What a step costs, counted from its plan and the model's geometry: arithmetic, traffic to memory, and the time of both.

FLOPs are those of the matrix products (two a multiplication and addition): linear layers, attention, head. What goes element by
element is not counted, as is usual. Predictions are of the larger of arithmetic at the machine's peak and traffic at its
bandwidth (the roofline: Williams, Waterman, Patterson 2009).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Literal

import attrs

from esdllm.errors import UnavailableError
from esdllm.plan import Step, StepPlan
from esdllm.runtime.components import Components
from esdllm.views import ModelSpec

__all__ = ["Cost", "Costing", "Kind", "Roofline", "step_kind"]

Kind = Literal["refresh", "reuse", "skip"]
"""refresh: every layer computes the window; skip: deeper layers compute less; reuse: neither."""

_FLOAT = 4  # bytes of a logit while tokens are chosen


def step_kind(step: Step) -> Kind:
    """Return what a step does beside deciding positions."""
    return "refresh" if step.scope.refresh else "skip" if step.plan.skips else "reuse"


@attrs.frozen
class Roofline:
    """What a device does at best, as measured."""

    gflops: float
    """10^9 FLOPs per second, of matrix products"""
    bandwidth: float | None = None
    """10^9 bytes per second, read from memory; None if not known"""


@attrs.frozen
class Cost:
    """What one step costs, over all rows."""

    linear: int
    """FLOPs of the layers' projections and feed-forward"""
    attention: int
    """FLOPs of attention's two products"""
    head: int
    """FLOPs of the logits"""
    weights: int
    """bytes of weights, each read once; 0 if not known"""
    cache: int
    """bytes of keys, values and remembered tensors, read and written"""
    activations: int
    """bytes between the operations, each tensor written once and read once"""

    @property
    def flops(self) -> int:
        """All FLOPs."""
        return self.linear + self.attention + self.head

    @property
    def bytes(self) -> int:
        """All bytes."""
        return self.weights + self.cache + self.activations

    def seconds(self, roofline: Roofline) -> float:
        """Return the predicted time: of the arithmetic, or of the traffic where the bandwidth is known and that takes longer."""
        arithmetic = self.flops / (roofline.gflops * 1e9)
        return max(arithmetic, self.bytes / (roofline.bandwidth * 1e9)) if roofline.bandwidth else arithmetic


@attrs.frozen
class Costing:
    """Counts the cost of the steps of a run.

    A store that chooses which keys are read later (`Phase.KEPT`) is counted as if it read all: the choice is its own.
    """

    spec: ModelSpec
    rows: int
    """R, prompts, or twice as many under guidance"""
    length: int
    """L, columns of the canvas"""
    itemsize: int
    """bytes of a hidden state's number"""
    weights: int = 0
    """bytes of all weights that a step reads: layers and head, not the embedding"""
    site: str = "hidden"
    """where positions are scored and dropped"""
    persistent: bool = True
    """whether keys and values of positions that a step does not compute are read from a cache"""

    @classmethod
    def of(
        cls, components: Components, spec: ModelSpec, batch: int, length: int, itemsize: int, weights: int = 0
    ) -> Costing:
        """Return what counts the steps of a configuration; `weights` are the bytes of all weights, the embedding too.

        Raises:
            UnavailableError: the model's family does not tell the size of its feed-forward.
        """
        if not spec.inside(0):
            raise UnavailableError(
                f"the family {spec.family} does not tell ModelSpec.intermediate, the features inside its feed-forward, "
                "without which FLOPs cannot be counted"
            )
        embedding = spec.vocab * spec.hidden * itemsize
        return cls(
            spec=spec,
            rows=batch * (2 if components.config.cfg_scale else 1),
            length=length,
            itemsize=itemsize,
            weights=max(0, weights - embedding),
            site=components.importance.site,
            persistent=components.cache.persistent,
        )

    def step(self, plan: StepPlan) -> Cost:
        """Return the cost of a step of this plan."""
        layers = [self._layer(plan, layer) for layer in range(len(plan.keep))]
        linear, attention, cache, activations = (self.rows * sum(part) for part in zip(*layers, strict=True))
        decided, spec = self.rows * plan.decided, self.spec
        return Cost(
            linear=linear,
            attention=attention,
            head=2 * decided * spec.hidden * spec.vocab,
            weights=self.weights - self._idle(plan),
            cache=cache,
            activations=activations + decided * spec.vocab * (2 * self.itemsize + 2 * _FLOAT),
        )

    def run(self, steps: Iterable[tuple[StepPlan, float]]) -> int:
        """Return the FLOPs of a run: its plans, each with a number of steps; a plan may come again."""
        counts: dict[StepPlan, float] = defaultdict(float)
        for plan, number in steps:
            counts[plan] += number
        return round(sum(number * self.step(plan).flops for plan, number in counts.items()))

    def _idle(self, plan: StepPlan) -> int:
        """Return the bytes of experts that no position of a step is expected to go through, if all are chosen alike."""
        spec, experts = self.spec, self.spec.experts
        if experts is None:
            return 0
        share = 3 * spec.hidden * experts.intermediate / _linear_weights(spec)  # of one expert
        unchosen = 1 - experts.chosen / experts.experts
        idle = sum(experts.experts * unchosen ** (self.rows * self._reading(plan, layer)) for layer in experts.layers)
        return round(self.weights * share * idle)

    def _reading(self, plan: StepPlan, layer: int) -> int:
        """Return the positions of one row whose attention and feed-forward a layer computes."""
        alive = (
            plan.computed[layer] if self.site == "hidden" else plan.keep[layer]
        )  # the other sites drop before attention
        return plan.block if plan.narrow and layer == len(plan.keep) - 1 else alive

    def _layer(self, plan: StepPlan, layer: int) -> tuple[int, int, int, int]:
        """Return a layer's FLOPs (linear, attention) and bytes (cache, activations), of one row."""
        spec, size = self.spec, self.itemsize
        given, handed = plan.computed[layer], plan.keep[layer]
        alive = given if self.site == "hidden" else handed  # the other sites drop before attention
        reading = self._reading(plan, layer)
        projecting = plan.block if reading < alive else given
        joint, inside = spec.n_heads * spec.head_dim, 3 * spec.inside(layer)
        router = spec.experts.experts if spec.experts and spec.routes(layer) else 0
        keys = min(self.length if self.persistent else alive, plan.visible or self.length)
        pair = 2 * spec.n_kv_heads * spec.head_dim
        linear = 2 * spec.hidden * (projecting * joint + given * pair + reading * (joint + inside + router))
        attention = 4 * reading * keys * joint
        remembered = 2 * alive * (spec.hidden if self.site == "hidden" else joint) if layer in plan.scored else 0
        cache = size * (keys * pair + (alive * pair if self.persistent else 0) + remembered)
        activations = 2 * size * (given * (spec.hidden + pair) + reading * (2 * spec.hidden + 2 * joint + inside))
        return linear, attention, cache, activations


def _linear_weights(spec: ModelSpec) -> int:
    """Return how many weights the linear layers have, those of all experts and the head."""
    attention = 2 * (spec.n_heads + spec.n_kv_heads) * spec.head_dim
    total = spec.hidden * (spec.vocab + spec.n_layers * attention)
    for layer in range(spec.n_layers):
        every = spec.inside(layer)
        if spec.experts is not None and spec.routes(layer):
            every = spec.experts.experts * spec.experts.intermediate + spec.experts.shared
        total += 3 * spec.hidden * every
    return total
