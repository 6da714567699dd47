"""The engine: components resolved, checked and put together once; then generation, in which no hook is called.

engine = Engine.build(esdllm.load_model("tiny-llada"), esdllm.configure("es-dllm"))
engine.generate("Sort 3 1 2.", chat=True).text
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from esdllm.checkpoints.loading import Model
from esdllm.config import SECTIONS, DecodeConfig
from esdllm.errors import InputError, PluginError, brief
from esdllm.interfaces import Cache, StepObserver
from esdllm.keywords import hinting
from esdllm.plan import Layout
from esdllm.planning.schedule import Planner
from esdllm.plugins.capabilities import devices_of
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.canvas import Canvas, layout, undecided_positions
from esdllm.runtime.components import Components
from esdllm.runtime.culprit import naming_culprits
from esdllm.runtime.diagnosis import raise_if_poisoned
from esdllm.runtime.graphs import CudaCapture, current
from esdllm.runtime.prompts import Prepared, Prompts, prepare, seed_list
from esdllm.runtime.records import Generation, until_stop
from esdllm.runtime.rehearsal import rehearse
from esdllm.runtime.run import Run, StepFunction, check_backend
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
        return self.components.planner(canvas, self.model.spec.n_layers, early_stop)

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
    ) -> Generation:
        """Decode prompts: text, lists of token ids, conversations, or a tensor (B, P) int64 with an attention mask.

        `infill` takes each prompt as a canvas whose mask tokens are to be filled in, and generates nothing after it.
        `chat` says whether text goes through the chat template: if not told, where the checkpoint brings one. `seed` is every
        row's (a row then comes out the same in any batch), or one a row (for several answers to one prompt). `observers` watch
        beside those of the configuration.

        Raises:
            InputError: what was passed cannot be decoded; says why. Or an observer of a run asks its own engine for another.
            UnavailableError: the cache store cannot hold a run of this size.
            NumericsError: NaN among the logits; says since which step, in which row and layer.
            PluginError: a component failed; names it. What it raised is the cause.
        """
        prepared = prepare(self.model, prompts, attention_mask, self.config.gen_length, infill, chat)
        room = self._room(prepared)
        tokens, present = prepared.padded(room, self.model.spec)
        adapter, early_stop = self.model.adapter, self.config.early_stop and not infill
        blaming = naming_culprits(self.components, adapter, lambda: self.cache)
        with self.turn, blaming, torch.inference_mode(), current(adapter.device):
            canvas = Canvas.of(
                tokens,
                present,
                self._seeds(seed, tokens.shape[0]),
                adapter.spec,
                branches=2 if self.config.cfg_scale else 1,
                device=adapter.device,
                dtype=adapter.dtype,
                memory=self.components.can.memory,
                revisions=self.components.can.revisions,
                measures=self.components.can.learning is not None,
                watched=bool(self.components.observers or observers),
            )
            planner = self.planner(layout(tokens, present, adapter.spec), early_stop)
            parts = self.components.parts(adapter, self.allocated(canvas, planner))
            canvas = self._standing.canvas(canvas)
            run = Run(canvas, parts, self._stop_ids(canvas), blocks=self.components.can.moving)
            run.denoise(planner, self.step_function, [*self.components.observers, *observers])
            return self._result(run, room, prepared.starts, fill=early_stop, end=not infill)

    def _room(self, prepared: Prepared) -> int:
        """Return the columns of padding to put before all rows."""
        first = 0
        if self.components.can.reach:
            first = int(undecided_positions(prepared.tokens, self.model.spec).long().argmax(1).min())
        return self.components.room(first, prepared.tokens.shape[1], self.step_function.has_forms)

    def _seeds(self, seed: int | Sequence[int] | None, rows: int) -> Tensor:
        seed = self.config.seed if seed is None else seed
        found = seed_list(seed, rows)
        if len(found) != rows or any(type(number) is not int or not 0 <= number < 2**63 for number in found):
            raise InputError(
                f"seed = {brief(seed)} for {rows} rows; give one whole number from 0 to 2**63 - 1, or one a row"
            )
        return torch.tensor(found, dtype=torch.int64)

    def allocated(self, canvas: Canvas, planner: Planner) -> Cache:
        """Return an empty cache of the run's shape; the last run's if it fits."""
        adapter, (rows, length) = self.model.adapter, canvas.tokens.shape
        rows *= canvas.branches
        shape = self.components.cache_shape(adapter.spec, planner, rows, length, adapter.device, adapter.dtype)
        if not self._standing.can_serve(shape):
            self._drop()  # before room for the new one is sought
            self.step_function.recording = self._standing.shares = self._can_record(shape)
            self._standing.allocate(shape)
        return self._standing.take(shape)

    def _can_record(self, shape: CacheShape) -> bool:
        """Return whether steps over a cache are recorded: what cannot be called inside a compiled step cannot be recorded."""
        wanted = self.step_function.graphs is not None
        return wanted and not self.components.cache.problems(attrs.evolve(shape, compiled=True))

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

    def _stop_ids(self, canvas: Canvas) -> Tensor:
        return torch.tensor(self.model.stop_ids, device=canvas.tokens.device)

    def _result(self, run: Run, room: int, starts: Sequence[int], fill: bool, end: bool) -> Generation:
        """Return what was made behind `room`, the answers from the columns `starts` of that, and if `end` up to their first stop.

        `fill` writes end-of-text behind the first stop, so that a row is the same in any batch.
        """
        canvas, tokens = run.canvas, run.canvas.tokens.clone()
        answers: list[list[int]] = []
        committed = 0
        if not tokens.is_meta:
            raise_if_poisoned(self.model.adapter, canvas, self.components.named("sampler", "cache", "attention"))
            committed = int((~canvas.given & ~canvas.undecided_columns()).sum())
            if fill:
                first = canvas.first_stop(run.stop_ids).unsqueeze(1)
                tokens = tokens.masked_fill(canvas.columns > first, self.model.spec.eos_id)
            self._check_decided((tokens == self.model.spec.mask_id) & ~canvas.given)
            tokens = tokens.cpu()
            answers = [row[room + start :] for row, start in zip(tokens.tolist(), starts, strict=True)]
            answers = [until_stop(row, self.model.stop_ids) for row in answers] if end else answers
        codec = self.model.codec
        vanilla = run.steps * self.model.spec.n_layers * canvas.tokens.shape[1]
        return Generation(
            tokens=tokens[:, room:],
            answers=answers,
            text=[codec.decode(row) for row in answers] if codec else None,
            steps=run.steps,
            forwards=run.steps,
            committed=committed,
            layer_work=run.layer_work * tokens.shape[0] * canvas.branches,
            layer_share=run.layer_work / max(1, vanilla),
            seconds=run.seconds,
            compile_seconds=run.compile_seconds,
        )

    def _check_decided(self, left: Tensor) -> None:
        """Refuse what a run made if masks (B, L) bool are left in it.

        Raises:
            PluginError: the components left them undecided, or the sampler chose the mask.
        """
        if left.any():
            row, column = left.nonzero()[0].tolist()
            raise PluginError(
                f"{int(left.sum())} masks are left at the end of the run, the first at row {row}, column {column}: a component "
                f"broke its contract; check {self.components.named(*SECTIONS[:6])} with esdllm.testing"
            )
