"""An engine that tells the time of each step. The ordinary engine has no clock; this one reads it between the steps only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import attrs
import torch

from esdllm.measure.benchmarking.sampling import refuse, sample
from esdllm.measure.cost import Kind, step_kind
from esdllm.plan import Facts, Layout, Step, StepPlan
from esdllm.planning.schedule import Planner
from esdllm.runtime.engine import Engine
from esdllm.runtime.graphs import current

__all__ = ["Clock", "ClockedEngine", "StepTime", "seconds_of"]


class StepTime(NamedTuple):
    """One step, and how long it took."""

    kind: Kind
    window: str
    plan: StepPlan
    seconds: float
    weight: float = 1.0
    """steps of the run that it stands for"""


class Clock:
    """Notes what happens when. On a GPU the moments are the device's own, by events, so that noting one waits for nothing."""

    def __init__(self, device: torch.device) -> None:
        self.marks: list[tuple[str, Any, Any]] = []
        """what happened (step, end, enter, leave), to what, and when"""
        self.planning = 0.0
        """seconds that it took to plan the run, where that was done before its first step"""
        self.weights: list[float] = []
        """of the steps, as `StepTime` has them"""
        self._cuda = device.type == "cuda"

    def mark(self, what: str, about: Any = None) -> None:
        """Note that something happens now."""
        self.marks.append((what, about, self._event() if self._cuda else time.perf_counter()))

    def begin(self, step: Step, weight: float = 1.0) -> None:
        """Note that a step begins, which stands for `weight` of them."""
        self.weights.append(weight)
        self.mark("step", step)

    def between(self, first: Any, second: Any) -> float:
        """Return the seconds from one noted moment to another, once the device has come to both."""
        return float(first.elapsed_time(second)) / 1e3 if self._cuda else float(second - first)

    def steps(self) -> list[StepTime]:
        """Return the steps noted so far."""
        found: list[StepTime] = []
        begun = None
        for what, about, moment in self.marks:
            if what == "step":
                begun = about, moment
            elif what == "end" and begun:
                step, start = begun
                seconds, weight = self.between(start, moment), self.weights[len(found)]
                found.append(StepTime(step_kind(step), step.scope.window.value, step.plan, seconds, weight))
        return found

    @staticmethod
    def _event() -> Any:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call, unused-ignore]
        event.record()
        return event


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes by the device's own clock: on a GPU the host's has the launch in it."""
    clock = Clock(device)
    with current(device):  # whose stream the events wait for
        clock.mark("enter")
        call()
        clock.mark("leave")
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    (_, _, first), (_, _, second) = clock.marks
    return clock.between(first, second)


@attrs.define(eq=False)
class _ClockedPlanner(Planner):
    clock: Clock = attrs.field(kw_only=True)
    sample: int | None = attrs.field(kw_only=True)

    def walk(self, read: Callable[[], Facts]) -> Iterator[Step]:
        """Yield the steps, or a sample of them; one ends when the next is asked for."""
        for step, weight in self._weighted(read):
            self.clock.begin(step, weight)
            yield step
            self.clock.mark("end")

    def _weighted(self, read: Callable[[], Facts]) -> Iterator[tuple[Step, float]]:
        if self.sample is None:
            yield from ((step, 1.0) for step in Planner.walk(self, read))
            return
        started = time.perf_counter()
        steps = list(Planner.walk(self, refuse))
        self.clock.planning = time.perf_counter() - started
        yield from sample(steps, self.sample)


@attrs.define(eq=False)
class ClockedEngine(Engine):
    """An engine that notes when each step begins and ends; what it computes is the engine's own."""

    clock: Clock = attrs.field(init=False)
    """of the last run"""
    sample: int | None = attrs.field(default=None, kw_only=True)
    """the most steps of each plan that are made; None for all"""

    @clock.default
    def _clock(self) -> Clock:
        return Clock(self.model.adapter.device)

    @property
    def _leaves_masks(self) -> bool:  # type: ignore[override]
        """Whether masks are left on purpose."""
        return self.sample is not None

    def planner(self, canvas: Layout, early_stop: bool = False) -> Planner:
        """Return the planner of a run; the clock begins anew."""
        self.clock = self._clock()
        made = Engine.planner(self, canvas, early_stop)
        fields = [field.name for field in attrs.fields(Planner) if field.init]
        return _ClockedPlanner(**{name: getattr(made, name) for name in fields}, clock=self.clock, sample=self.sample)
