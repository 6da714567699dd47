"""What a step of several rows takes, in seconds: from the machine's peaks, or from what steps took here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import attrs
import numpy as np

from esdllm.errors import InputError
from esdllm.measure.cost import Cost, Costing, Roofline
from esdllm.plan import StepPlan
from esdllm.runtime.components import Components
from esdllm.views import ModelSpec

__all__ = ["Measured", "Pricing", "StepSeconds", "fitted"]


@attrs.frozen
class StepSeconds:
    """Seconds of a step: so many for each step and for each row, and those of arithmetic and traffic.

    By the roofline the longer of the two counts, `adds` says that both do.
    """

    roofline: Roofline
    step: float = 0.0
    """seconds of a step whatever it does: launches, planning, Python"""
    row: float = 0.0
    """seconds of each row"""
    adds: bool = False

    def seconds(self, cost: Cost, rows: int) -> float:
        """Return what a step of this cost takes."""
        return self.step + self.row * rows + (self._sum(cost) if self.adds else cost.seconds(self.roofline))

    def _sum(self, cost: Cost) -> float:
        moved = cost.bytes / (self.roofline.bandwidth * 1e9) if self.roofline.bandwidth else 0.0
        return cost.flops / (self.roofline.gflops * 1e9) + moved


@attrs.define(eq=False)
class Pricing:
    """Seconds of steps of one model under one configuration."""

    time: StepSeconds
    cost: Callable[[StepPlan, int, int], Cost]
    _known: dict[tuple[StepPlan, int, int], float] = attrs.field(factory=dict, init=False)

    @classmethod
    def of(cls, components: Components, spec: ModelSpec, itemsize: int, weights: int, time: StepSeconds) -> Pricing:
        """Return the pricing of a model whose numbers have `itemsize` bytes, and its weights `weights` in all.

        Raises:
            UnavailableError: the model's family does not tell the size of its feed-forward.
        """
        costing = Costing.of(components, spec, 1, 1, itemsize, weights)
        branches = costing.rows

        def cost(plan: StepPlan, rows: int, length: int) -> Cost:
            return attrs.evolve(costing, rows=rows * branches, length=length).step(plan)

        return cls(time, cost)

    def seconds(self, plan: StepPlan, rows: int, length: int) -> float:
        """Return what a step of so many rows takes, on canvases of `length` columns at most."""
        key = (plan, rows, length)
        if key not in self._known:
            self._known[key] = self.time.seconds(self.cost(*key), rows)
        return self._known[key]


class Measured(NamedTuple):
    """A step that was made."""

    cost: Cost
    rows: int
    seconds: float


def fitted(steps: Sequence[Measured]) -> StepSeconds:
    """Return the times that come nearest to those measured, none negative: least squares of relative errors.

    Raises:
        InputError: fewer than four steps, or such as cannot be told apart.
    """
    if len(steps) < 4:
        raise InputError(f"{len(steps)} steps were measured; four numbers are fitted to them, so measure more")
    told = np.array([[1.0, one.rows, one.cost.flops / 1e9, one.cost.bytes / 1e9] for one in steps])
    weights = 1 / np.array([one.seconds for one in steps])
    best: tuple[float, list[float]] | None = None
    for size in range(1, 5):
        for chosen in combinations(range(4), size):
            columns = told[:, chosen] * weights[:, None]
            found, *_ = np.linalg.lstsq(columns, np.ones(len(steps)), rcond=None)
            error = float(((columns @ found - 1) ** 2).sum())
            if (found >= 0).all() and (best is None or error < best[0] - 1e-12):
                numbers = [0.0] * 4
                for place, value in zip(chosen, found, strict=True):
                    numbers[place] = float(value)
                best = error, numbers
    if best is None:
        raise InputError("no times of at least 0 come near what was measured; measure steps of more kinds")
    step, row, flop, byte = best[1]
    roofline = Roofline(1 / flop if flop else float("inf"), 1 / byte if byte else None)
    return StepSeconds(roofline, step, row, adds=True)
