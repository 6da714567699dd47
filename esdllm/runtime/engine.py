"""The engine: components resolved, checked and put together once; then generation, in which no hook is called.

engine = Engine.build(esdllm.load_model("tiny-llada"), esdllm.configure("es-dllm"))
engine.generate("Sort 3 1 2.", chat=True).text
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor

from esdllm.checkpoints.loading import Model
from esdllm.config import DecodeConfig
from esdllm.errors import InputError, brief
from esdllm.interfaces import Cache, StepObserver, TokenSampler
from esdllm.keywords import hinting
from esdllm.plan import Layout
from esdllm.planning.schedule import Planner
from esdllm.plugins.capabilities import devices_of
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.beginning import Beginning, begin
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.components import Components
from esdllm.runtime.culprit import naming_culprits
from esdllm.runtime.graphs import CudaCapture, current
from esdllm.runtime.prompts import Prepared, Prompts, prepare
from esdllm.runtime.records import Generation
from esdllm.runtime.rehearsal import rehearse
from esdllm.runtime.results import generation
from esdllm.runtime.run import Run, StepFunction, check_backend
from esdllm.runtime.slots import Slots
from esdllm.runtime.standing import Standing
from esdllm.runtime.turns import Turn
from esdllm.views import CacheShape

__all__ = ["Engine"]


@hinting
@attrs.define(eq=False, repr=False)
class Engine:
    """Decodes with one model under one configuration. Build it with `Engine.build`; reuse it for many prompts.

    It makes one run at a time, for the cache is that of the run that is going on: a second thread waits for the first.
    """

    model: Model
    config: DecodeConfig
    components: Components
    step_function: StepFunction
    turn: Turn = attrs.field(factory=Turn, init=False, repr=False)
    """whose run it is; a stream holds it from its beginning to its end"""
    _standing: Standing = attrs.field(init=False)
    _leaves_masks = False

    @_standing.default
    def _standing_of_components(self) -> Standing:
        return Standing(self.components)

    @classmethod
    @hinting
    def build(cls, model: Model, config: DecodeConfig, catalogue: Catalogue | None = None) -> Engine:
        """Return an engine whose components exist, fit together and can serve this model.

        Raises:
            ConfigError: unknown or contradictory settings.
            PluginError: a component breaks its contract in a rehearsal; names it, and says how.
            UnavailableError: a backend cannot serve here; gives all its reasons.
        """
        catalogue, adapter = catalogue or Catalogue.load(), model.adapter
        components = Components.resolve(config, catalogue)
        with naming_culprits(components, adapter):
            components = components.serving(catalogue, model.spec, adapter.device, adapter.dtype)
            components.check_plan(model.spec)
            rehearse(components, adapter)
        alone = adapter.device.type == "cuda" and devices_of(adapter) == 1
        if config.compile:
            check_backend(config.compile_backend)
        graphs = CudaCapture(adapter.device) if config.cuda_graphs and alone else None
        return cls(model, config, components, StepFunction(config.compile, config.compile_backend, graphs))

    def __repr__(self) -> str:
        return f"Engine({self.model!r}, gen_length={self.config.gen_length}, block_length={self.config.block_length})"

    def planner(self, canvas: Layout, early_stop: bool = False) -> Planner:
        """Return the planner of a run over a canvas."""
        return self.components.planner(
            canvas, self.model.spec.n_layers, early_stop, few_sights=self.step_function.has_forms
        )

    @hinting
    def generate(
        self,
        prompts: Prompts,
        *,
        attention_mask: Tensor | None = None,
        infill: bool = False,
        chat: bool | None = None,
        seed: int | Sequence[int] | None = None,
        observers: Sequence[StepObserver] = (),
        constraint: Callable[[TokenSampler], TokenSampler] | None = None,
    ) -> Generation:
        """Decode prompts: text, lists of token ids, conversations, or a tensor (B, P) int64 with an attention mask.

        `infill` takes each prompt as a canvas whose mask tokens are to be filled in, and generates nothing after it.
        `chat` says whether text goes through the chat template: if not told, where the checkpoint brings one. `seed` is every
        row's (a row then comes out the same in any batch), or one per row (for several answers to one prompt). `observers` watch
        beside those of the configuration. `constraint` makes, of the configuration's sampler, the one that this run samples with;
        its steps are then neither compiled nor recorded.

        Raises:
            InputError: what was passed cannot be decoded; says why. Or an observer of a run asks its own engine for another.
            UnavailableError: the cache store cannot hold a run of this size.
            NumericsError: NaN among the logits; says since which step, in which row and layer.
            PluginError: a component failed; names it. What it raised is the cause.
        """
        prepared = prepare(self.model, prompts, attention_mask, self.config.gen_length, infill, chat)
        early_stop, watching = self.config.early_stop and not infill, [*self.components.observers, *observers]
        with self._at_work():
            run, planner, began = self._begun(prepared, seed, early_stop, infill, watched=bool(watching))
            function = self.step_function
            if constraint is not None:
                run.parts = attrs.evolve(run.parts, sampler=constraint(run.parts.sampler))
                function = StepFunction(compiled=False)
            run.denoise(planner, function, watching)
            return generation(
                self.model,
                self.components,
                run.canvas,
                run.stop_ids,
                run.effort,
                began.room,
                began.spans,
                fill=early_stop,
                end=not infill,
                complete=not self._leaves_masks,
            )

    @hinting
    def warm(self, rows: int, length: int) -> int:
        """Make ready the steps of runs over `rows` prompts of `length` tokens; return of how many plans, 0 where none need it.

        They are compiled, and recorded as CUDA graphs, so that the first answers need not wait for that, nor steps that a run has
        once. Each plan is made twice, over prompts of end-of-text. Where the logits decide how many positions a step commits,
        further plans come with the answers; prompts of other lengths share what they share a canvas with (`canvas_multiple`).

        Raises:
            InputError: there is no such prompt.
            UnavailableError: the cache store cannot hold a run of this size.
        """
        if type(rows) is not int or type(length) is not int or min(rows, length) < 1:
            raise InputError(f"{brief(rows)} prompts of {brief(length)} tokens; give whole numbers of at least 1")
        if not self.step_function.has_forms:
            return 0
        filler = torch.full((rows, length), self.model.spec.eos_id)
        prepared = prepare(self.model, filler, None, self.config.gen_length, False, None)
        with self._at_work():
            watched = bool(self.components.observers)
            run, planner, _ = self._begun(prepared, None, self.config.early_stop, infill=False, watched=watched)
            plans = {step.plan: step for step in reversed(planner.forecast())}  # of each plan the first step
            for step in reversed(plans.values()):
                for _ in range(2):
                    run.make(step, self.step_function)
            return len(plans)

    def slots(self, count: int, length: int) -> Slots:
        """Return `count` free slots for rows that come and go, each of at most `length` columns: a prompt and its answer.

        They have a canvas and a cache of their own, which are free again when they are closed.

        Raises:
            InputError: there is to be no slot, or one longer than the model's context.
            UnavailableError: the cache store cannot hold them; gives all its reasons.
            ConfigError: the configuration has observers, which watch whole runs.
        """
        return Slots.build(self.model, self.components, self.step_function, self.turn, count, length)

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """Hold the turn, on the model's device, and name whoever fails."""
        adapter = self.model.adapter
        blaming = naming_culprits(self.components, adapter, lambda: self.cache)
        with self.turn, blaming, torch.inference_mode(), current(adapter.device):
            yield

    def _begun(
        self, prepared: Prepared, seed: int | Sequence[int] | None, early_stop: bool, infill: bool, watched: bool
    ) -> tuple[Run, Planner, Beginning]:
        """Return a run over prompts before its first step, what plans it, and what it began with."""
        adapter, components, function = self.model.adapter, self.components, self.step_function
        began = begin(self.model, components, prepared, seed, function.has_forms, infill, watched)
        planner, canvas = self.planner(began.layout, early_stop), began.canvas
        parts = components.parts(adapter, self.allocated(canvas, planner))
        canvas, function.recording = self._standing.canvas(canvas), self._standing.shares
        stop_ids = torch.tensor(self.model.stop_ids, device=adapter.device)
        return Run(canvas, parts, stop_ids, blocks=components.can.moving), planner, began

    def allocated(self, canvas: Canvas, planner: Planner) -> Cache:
        """Return an empty cache of the run's shape; the last run's if it fits."""
        adapter, (rows, length) = self.model.adapter, canvas.tokens.shape
        rows *= canvas.branches
        layers = planner.skip_layers()
        shape = self.components.cache_shape(adapter.spec, layers, rows, length, adapter.device, adapter.dtype)
        if not self._standing.can_serve(shape):
            self._drop()  # before room for the new one is sought
            self._standing.shares = self.step_function.records(self.components.cache, shape)
            self._standing.allocate(shape)
        return self._standing.take(shape)

    @property
    def cache(self) -> Cache | None:
        """The cache of the run that is going on, or of the last; None if none is kept."""
        return self._standing.cache

    @property
    def cache_shape(self) -> CacheShape | None:
        """The shape of that cache; None if none is kept."""
        return self._standing.shape

    def close(self) -> None:
        """Free what is kept for the next run (cache, canvas, recorded steps), which then makes it anew; nothing else changes.

        Raises:
            InputError: a run of this thread's own is going on, which needs it.
        """
        with self.turn:
            self._drop()

    def _drop(self) -> None:
        if self.step_function.graphs is not None:
            self.step_function.graphs.forget()
        self._standing.drop()
