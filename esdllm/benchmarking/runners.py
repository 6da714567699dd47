"""What decodes: the engine under a configuration, or the bare loop. Both give samples of the same form."""

from __future__ import annotations

import time
from typing import Protocol, cast

import attrs
import torch
from torch import Tensor

from esdllm.benchmarking.bare import BareLoop, BareWeights
from esdllm.benchmarking.clock import Clock, ClockedEngine, StepTime
from esdllm.benchmarking.report import Memory
from esdllm.benchmarking.setting import Entry, Setting
from esdllm.catalogue import Catalogue
from esdllm.components import Components
from esdllm.cost import Costing
from esdllm.errors import InputError
from esdllm.loading import Model
from esdllm.plan import Layout
from esdllm.records import until_stop

__all__ = ["BareRunner", "EngineRunner", "Runner", "Sample", "runner"]


@attrs.frozen
class Sample:
    """One run of a contender."""

    seconds: float
    """of the steps and what is between them"""
    compile_seconds: float
    forwards: int
    answer_tokens: int
    """up to the first end of text of each row"""
    committed: int
    """positions decided, ends of text and what is behind them included"""
    steps: tuple[StepTime, ...]
    memory: Memory | None = None
    """beside the weights; None if not measured"""
    waiting: float | None = None
    """share of the time in which others had the processor; None if not measured"""


class Runner(Protocol):
    """Decodes the prompts once a call."""

    @property
    def entry(self) -> Entry:
        """The contender."""
        ...

    def run(self) -> Sample:
        """Decode once."""
        ...

    def costing(self, weight_bytes: int) -> Costing:
        """Return what counts its steps."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def rest(self) -> None:
        """Free what the next run allocates again, so that contenders do not hold it at the same time."""
        ...


@attrs.define(eq=False)
class EngineRunner:
    """The engine."""

    entry: Entry
    engine: ClockedEngine
    prompts: Tensor

    @classmethod
    def of(cls, entry: Entry, model: Model, prompts: Tensor, catalogue: Catalogue) -> EngineRunner:
        """Return an engine that is ready to decode."""
        return cls(entry, cast(ClockedEngine, ClockedEngine.build(model, entry.config, catalogue)), prompts)

    def run(self) -> Sample:
        """Decode once."""
        found = self.engine.generate(self.prompts)
        return Sample(
            found.seconds,
            found.compile_seconds,
            found.forwards,
            found.answer_tokens,
            found.committed,
            tuple(self.engine.clock.steps()),
        )

    def costing(self, weight_bytes: int) -> Costing:
        """Return what counts its steps."""
        return _costing(self.engine.components, self.engine.model, self.entry, self.prompts, weight_bytes)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.engine.model.adapter.device

    def rest(self) -> None:
        """Free the cache, unless a compiled step may hold its address."""
        if not self.entry.config.compile:
            self.engine.close()


@attrs.define(eq=False)
class BareRunner:
    """The bare loop, on weights of its own.

    Its plan is rehearsed, without a device: where a window begins at what was committed last, it is taken to begin at the last
    position of the block before.
    """

    entry: Entry
    model: Model
    prompts: Tensor
    weights: BareWeights
    catalogue: Catalogue

    @classmethod
    def of(cls, entry: Entry, model: Model, prompts: Tensor, catalogue: Catalogue) -> BareRunner:
        """Return the loop with random weights of the model's size.

        Raises:
            InputError: the model's weights are quantised, which the loop does not know.
        """
        if model.quantize is not None:
            raise InputError(
                f"the bare loop has no {model.quantize} weights; leave out --quantize, or the contender bare"
            )
        adapter = model.adapter
        weights = BareWeights.random(model.spec, adapter.dtype, adapter.device)
        return cls(entry, model, prompts.to(adapter.device), weights, catalogue)

    def run(self) -> Sample:
        """Decode once, by a plan that is made before."""
        config, spec, clock = self.entry.config, self.model.spec, Clock(self.model.adapter.device)
        layout = Layout.of(self.prompts.shape[1], config.gen_length, spec.logit_shift, self.prompts.shape[0])
        steps = Components.resolve(config, self.catalogue).planner(layout, spec.n_layers).rehearse()
        with torch.inference_mode():
            scored = steps[0].plan.scored
            loop = BareLoop(spec, self.weights, self.prompts, config.gen_length, scored, config.delay_eos)
            started = time.perf_counter()
            for step in steps:
                clock.mark("step", step)
                loop.step(step)
                clock.mark("end")
            if self.prompts.is_cuda:
                torch.cuda.synchronize(self.prompts.device)
            seconds = time.perf_counter() - started
        rows = loop.tokens[:, self.prompts.shape[1] :].tolist()
        answers = [len(until_stop(row, self.model.stop_ids)) for row in rows]
        return Sample(seconds, 0.0, len(steps), sum(answers), len(steps) * len(answers), tuple(clock.steps()))

    def costing(self, weight_bytes: int) -> Costing:
        """Return what counts its steps."""
        components = Components.resolve(self.entry.config, self.catalogue)
        return _costing(components, self.model, self.entry, self.prompts, weight_bytes)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.adapter.device

    def rest(self) -> None:
        """Nothing is kept but weights."""


def _costing(components: Components, model: Model, entry: Entry, prompts: Tensor, weight_bytes: int) -> Costing:
    batch, length = prompts.shape[0], prompts.shape[1] + entry.config.gen_length
    return Costing.of(components, model.spec, batch, length, model.adapter.dtype.itemsize, weight_bytes)


def runner(entry: Entry, setting: Setting, model: Model, catalogue: Catalogue) -> Runner:
    """Return what decodes a contender.

    Raises:
        InputError, ConfigError, UnavailableError: it cannot be decoded with this model here.
    """
    make = BareRunner.of if entry.bare else EngineRunner.of
    return make(entry, model, setting.prompts(model), catalogue)
