"""Where the time of a step goes. Components are wrapped from outside for one run, so that other runs pay nothing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.profiler import ProfilerActivity, record_function

from esdllm.measure.benchmarking.clock import Clock, ClockedEngine
from esdllm.measure.cost import step_kind
from esdllm.runtime.run import StepFunction

__all__ = ["GAPS", "WORK", "profile"]

WORK: Mapping[str, str] = {
    "linear": "project and mix: norms, projections, RoPE, feed-forward",
    "attention": "attend",
    "head": "logits, their maximum and probability, sampling, unmasking",
    "scoring": "what was remembered, importance, top-k, gathering the survivors",
    "cache": "keys, values and remembered tensors written, and read where a store makes a copy",
    "bookkeeping": "all else: the canvas, positions, RoPE's angles",
}
"""The kinds of work in a step, and what counts as each."""
GAPS = "host gaps"
"""On a GPU, the share of the time in which it computes nothing."""

_MODEL = {"embed": "bookkeeping", "encode": "bookkeeping", "project": "linear", "mix": "linear", "logits": "head"}
_CACHE = {"update": "cache", "remember": "cache", "recall": "scoring"}
_POLICY = {"select": "head", "remember": "head", "revoke": "head"}


class _Timed:
    """A component whose methods tell the clock when they begin and end; all else is the component's own."""

    def __init__(self, inner: Any, methods: Mapping[str, str], clock: list[Clock]) -> None:
        self._inner, self._methods, self._clock = inner, methods, clock

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if name == "allocate":
            return lambda *a, **k: _Timed(found(*a, **k), _CACHE, self._clock)
        return self._timed(self._methods[name], name, found) if name in self._methods else found

    def _timed(self, work: str, name: str, method: Any) -> Any:
        def call(*a: Any, **k: Any) -> Any:
            clock = self._clock[0]
            clock.mark("enter", work)
            with record_function(f"esdllm.{work}.{name}"):
                made = method(*a, **k)
            clock.mark("leave", work)
            return made

        return call


@attrs.define(eq=False)
class _ProfiledEngine(ClockedEngine):
    current: list[Clock] = attrs.field(factory=list, kw_only=True)
    """the clock of the present run, for the components"""

    def planner(self, *a: Any, **k: Any) -> Any:
        made = ClockedEngine.planner(self, *a, **k)
        self.current[:] = [self.clock]
        return made


def profile(engine: ClockedEngine, prompts: Tensor) -> dict[str, dict[str, float]]:
    """Return, by kind and window of the steps, the share of their time in each of `WORK`; on a GPU that in `GAPS` too.

    One run, not compiled, for what is compiled cannot be told apart. The clock is the device's. A gap is time in which no kernel
    runs, so gaps lie within the work.
    """
    timed = _profiled(engine)
    device = engine.model.adapter.device
    timed.generate(prompts)
    shares = _shares(timed.clock)
    if device.type != "cuda":
        return shares
    gaps = _gaps(engine, prompts)
    return {name: {**taken, GAPS: gaps} for name, taken in shares.items()}


def _gaps(engine: ClockedEngine, prompts: Tensor) -> float:
    """Return the share of the steps' time in which no kernel runs: the steps' from an ordinary run, the kernels' from another."""
    engine.generate(prompts)
    seconds = sum(step.seconds for step in engine.clock.steps())
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        engine.generate(prompts)
    kernels = [event for event in profiler.key_averages() if event.device_type == DeviceType.CUDA]
    busy: float = sum(event.self_device_time_total for event in kernels) / 1e6
    return max(0.0, 1 - busy / seconds)


def _profiled(engine: ClockedEngine) -> _ProfiledEngine:
    """Return the same engine with every component of a step wrapped."""
    current: list[Clock] = []

    def wrap(inner: Any, methods: Mapping[str, str]) -> Any:
        return _Timed(inner, methods, current)

    components = attrs.evolve(
        engine.components,
        cache=wrap(engine.components.cache, {}),
        attention=wrap(engine.components.attention, {"attend": "attention"}),
        importance=wrap(engine.components.importance, {"score": "scoring"}),
        sampler=wrap(engine.components.sampler, {"sample": "head"}),
        unmasking=wrap(engine.components.unmasking, _POLICY),
    )
    model = attrs.evolve(engine.model, adapter=wrap(engine.model.adapter, _MODEL))
    step = StepFunction(compiled=False)
    return _ProfiledEngine(model, engine.config, components, step, sample=engine.sample, current=current)


def _shares(clock: Clock) -> dict[str, dict[str, float]]:
    """Return the shares of a run's marks: the time between two of them belongs to one kind of work."""
    spent: dict[str, dict[str, float]] = defaultdict(lambda: dict.fromkeys(WORK, 0.0))
    name, inside, left, before = "", "", "", None
    for what, about, moment in clock.marks:
        if what != "step" and before is not None:
            work = inside or _gap(left, about if what == "enter" else "")
            spent[name][work] += clock.between(before, moment)
        if what == "step":
            name, left = f"{step_kind(about)}, {about.scope.window.value}", ""
        inside, left = about if what == "enter" else "", about if what == "leave" else left
        before = None if what == "end" else moment
    return {kind: {work: t / sum(taken.values()) for work, t in taken.items()} for kind, taken in spent.items()}


def _gap(left: str, entered: str) -> str:
    """Return the kind of work that the runtime does itself, between two calls of components."""
    if left == "scoring" or entered == "scoring":
        return "scoring"
    return "head" if left == entered == "head" else "bookkeeping"
