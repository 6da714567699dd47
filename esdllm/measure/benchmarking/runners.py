"""What decodes: the engine under a configuration, or the bare loop. Both give samples of the same form."""

from __future__ import annotations

import time
from typing import Protocol, cast

import attrs
import torch
from torch import Tensor

from esdllm.checkpoints.loading import Model
from esdllm.measure.benchmarking.bare import BareLoop, BareWeights
from esdllm.measure.benchmarking.clock import Clock, ClockedEngine, StepTime
from esdllm.measure.benchmarking.report import PeakMemory
from esdllm.measure.benchmarking.sampling import refuse, sample
from esdllm.measure.benchmarking.setting import BenchContender, Setting
from esdllm.measure.cost import Costing
from esdllm.plan import Layout
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components
from esdllm.runtime.records import until_stop

__all__ = ["BareRunner", "EngineRunner", "Runner", "Sample", "runner"]


@attrs.frozen
class Sample:
    """One run of a contender."""

    seconds: float
    """of the steps and what is between them; where not all were made, what all would take at the times of those"""
    compile_seconds: float
    forwards: int
    """of a whole run"""
    answer_tokens: int | None
    """up to the first end of text of each row; None if not all steps were made"""
    committed: int
    """positions decided, ends of text and what is behind them included"""
    steps: tuple[StepTime, ...]
    memory: PeakMemory | None = None
    """beside the weights; None if not measured"""
    waiting: float | None = None
    """share of the time in which others had the processor; None if not measured"""


class Runner(Protocol):
    """Decodes the prompts once per call."""

    @property
    def contender(self) -> BenchContender:
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

    @property
    def keeps(self) -> bool:
        """Whether what a run allocates stands until the next one."""
        ...

    def warm(self) -> None:
        """Make ready what a run would make once, and later ones not."""
        ...

    def rest(self) -> None:
        """Free what the next run allocates again, so that contenders do not hold it at the same time."""
        ...


@attrs.define(eq=False)
class EngineRunner:
    """The engine."""

    contender: BenchContender
    engine: ClockedEngine
    prompts: Tensor

    @classmethod
    def of(
        cls, contender: BenchContender, model: Model, prompts: Tensor, catalogue: Catalogue, sample: int | None = None
    ) -> EngineRunner:
        """Return an engine that is ready to decode, or to make at most `sample` steps of each plan.

        Raises:
            InputError: some steps are to be made only, but the plan depends on what is decoded.
        """
        engine = cast(ClockedEngine, ClockedEngine.build(model, contender.config, catalogue))
        if sample is not None:
            canvas = engine.components.layout(prompts.shape[1], model.spec, prompts.shape[0], model.adapter.device)
            list(engine.planner(canvas, contender.config.early_stop).walk(refuse))
        engine.sample = sample
        return cls(contender, engine, prompts)

    def run(self) -> Sample:
        """Decode once."""
        found = self.engine.generate(self.prompts)
        clock = self.engine.clock
        made = Sample(
            found.seconds,
            found.compile_seconds,
            found.forwards,
            found.answer_tokens,
            found.committed,
            tuple(clock.steps()),
        )
        decided = self.prompts.shape[0] * self.contender.config.gen_length
        return made if self.engine.sample is None else _whole(made, clock.planning, decided)

    def costing(self, weight_bytes: int) -> Costing:
        """Return what counts its steps."""
        return _costing(self.engine.components, self.engine.model, self.prompts, weight_bytes)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.engine.model.adapter.device

    @property
    def keeps(self) -> bool:
        """Whether a compiled or recorded step may hold the cache's address."""
        return self.engine.step_function.has_forms

    def warm(self) -> None:
        """Compile and record the steps of every plan, those too that a run makes once."""
        self.engine.warm(*self.prompts.shape)

    def rest(self) -> None:
        """Free the cache, unless a step holds it."""
        if not self.keeps:
            self.engine.close()


@attrs.define(eq=False)
class BareRunner:
    """The bare loop, on the model's weights.

    Its steps are forecast, without a device: where a window begins at what was committed last, it is taken to begin at the last
    position of the block before.
    """

    contender: BenchContender
    model: Model
    prompts: Tensor
    weights: BareWeights
    catalogue: Catalogue
    sample: int | None = None

    @classmethod
    def of(
        cls, contender: BenchContender, model: Model, prompts: Tensor, catalogue: Catalogue, sample: int | None = None
    ) -> BareRunner:
        """Return the loop over the model's weights, ready to decode or to make `sample` steps of each plan.

        Raises:
            InputError: the model is none that the loop computes.
        """
        adapter = model.adapter
        weights = BareWeights.of(adapter)
        return cls(contender, model, prompts.to(adapter.device), weights, catalogue, sample)

    def run(self) -> Sample:
        """Decode once, by a plan that is made before."""
        config, spec, clock = self.contender.config, self.model.spec, Clock(self.model.adapter.device)
        layout = Layout.of(self.prompts.shape[1], config.gen_length, spec.logit_shift, self.prompts.shape[0])
        steps = Components.resolve(config, self.catalogue).planner(layout, spec.n_layers).forecast()
        with torch.inference_mode():
            scored = steps[0].plan.scored
            loop = BareLoop(spec, self.weights, self.prompts, config.gen_length, scored, config.delay_eos)
            started = time.perf_counter()
            for step, weight in sample(steps, self.sample):
                clock.begin(step, weight)
                loop.step(step)
                clock.mark("end")
            if self.prompts.is_cuda:
                torch.cuda.synchronize(self.prompts.device)
            seconds = time.perf_counter() - started
        rows = loop.tokens[:, self.prompts.shape[1] :].tolist()
        answers = [len(until_stop(row, self.model.stop_ids)) for row in rows]
        decided = len(steps) * len(answers)
        made = Sample(seconds, 0.0, len(steps), sum(answers), decided, tuple(clock.steps()))
        return made if self.sample is None else _whole(made, 0.0, decided)

    def costing(self, weight_bytes: int) -> Costing:
        """Return what counts its steps."""
        components = Components.resolve(self.contender.config, self.catalogue)
        return _costing(components, self.model, self.prompts, weight_bytes)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.model.adapter.device

    @property
    def keeps(self) -> bool:
        """Whether anything is kept but weights: nothing is."""
        return False

    def warm(self) -> None:
        """Do nothing: no step is compiled or recorded."""

    def rest(self) -> None:
        """Do nothing: no cache is kept."""


def _whole(made: Sample, planning: float, decided: int) -> Sample:
    """Return what a whole run would be, of some of its steps; `planning` seconds of theirs were spent on the whole plan."""
    forwards = round(sum(step.weight for step in made.steps))
    between = (made.seconds - planning - sum(step.seconds for step in made.steps)) / len(made.steps)
    steps = sum(step.weight * step.seconds for step in made.steps)
    seconds = steps + planning + between * forwards
    return attrs.evolve(made, seconds=seconds, forwards=forwards, answer_tokens=None, committed=decided)


def _costing(components: Components, model: Model, prompts: Tensor, weight_bytes: int) -> Costing:
    batch, length = (
        prompts.shape[0],
        components.layout(prompts.shape[1], model.spec, device=model.adapter.device).length,
    )
    return Costing.of(components, model.spec, batch, length, model.adapter.dtype.itemsize, weight_bytes)


def runner(contender: BenchContender, setting: Setting, model: Model, catalogue: Catalogue) -> Runner:
    """Return what decodes a contender.

    Raises:
        InputError, ConfigError, UnavailableError: it cannot be decoded with this model here.
    """
    make = BareRunner.of if contender.bare else EngineRunner.of
    return make(contender, model, setting.prompts(model), catalogue, setting.sample)
