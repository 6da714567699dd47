"""A run: the steps of one canvas, one after the other. Everything is resolved before, everything is read after."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import attrs
import torch
from torch import Tensor

from esdllm.errors import ConfigError, known
from esdllm.interfaces import CacheStore, MovingBlocks, StepObserver
from esdllm.plan import Block, Facts, Step, StepPlan
from esdllm.planning.schedule import Planner
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.graphs import Capture, StepGraphs
from esdllm.runtime.parts import Parts, StepInputs
from esdllm.runtime.records import Effort
from esdllm.runtime.sharing import hidden, own_blocks, own_length, placed, sent
from esdllm.runtime.step import denoise
from esdllm.views import CacheShape, StepRecord

__all__ = ["Run", "StepFunction", "check_backend"]

_GRAPHS = 4096  # that one process may hold; torch's own limits (8 and 256) are meant to find accidental recompiling
_LIMITS = ("recompile_limit", "accumulated_recompile_limit", "cache_size_limit", "accumulated_cache_size_limit")


def check_backend(name: str) -> None:
    """Return if torch.compile knows a backend of this name.

    Raises:
        ConfigError: it does not; names those that it knows.
    """
    if name not in torch._dynamo.list_backends(None):
        told = {*torch._dynamo.list_backends(), "aot_eager"}  # torch's own tests and debugging have many more
        raise ConfigError(f"torch.compile has no backend '{name}'; {known(name, told)}")


class StepFunction:
    """The step, eager or compiled once for each distinct plan; `graphs`, if given, records it once for each."""

    def __init__(self, compiled: bool, backend: Any = "inductor", graphs: Capture | None = None) -> None:
        self.seconds_compiling = 0.0
        """wall-clock time of the first call of each compiled plan"""
        self._compiled = compiled
        self._step: Any = denoise
        self._seen: set[tuple[StepPlan, torch.Size]] = set()
        if compiled:  # torch._dynamo takes a second to import, which eager decoding does not need
            config = torch._dynamo.config
            self._limits = config.patch({name: _GRAPHS for name in _LIMITS if hasattr(config, name)})
            self._step = torch.compile(denoise, fullgraph=True, dynamic=False, backend=backend)
        self.graphs = None if graphs is None else StepGraphs(self._step, graphs)
        """what records the steps; None if nothing does"""
        self.recording = graphs is not None
        """whether steps are recorded at present"""

    @property
    def has_forms(self) -> bool:
        """Whether a step of another form (plan, shapes) is compiled or recorded anew."""
        return self._compiled or self.graphs is not None

    @property
    def made(self) -> int:
        """How many steps were compiled, or recorded, so far: a run during which that grows is not at its own speed yet."""
        return len(self._seen) + (0 if self.graphs is None else self.graphs.made)

    def records(self, store: CacheStore, shape: CacheShape) -> bool:
        """Return whether steps over a cache are recorded: what cannot be called inside a compiled step cannot be."""
        return self.graphs is not None and not store.problems(attrs.evolve(shape, compiled=True))

    def __call__(self, parts: Parts, plan: StepPlan, canvas: Canvas, inputs: StepInputs, eager: bool = False) -> None:
        """Make one step; an `eager` one is neither compiled nor recorded."""
        if eager:
            denoise(parts, plan, canvas, inputs)
            return
        step = self.graphs if self.graphs is not None and self.recording else self._step
        if not self._compiled:
            step(parts, plan, canvas, inputs)
            return
        started = time.perf_counter()
        with self._limits:
            step(parts, plan, canvas, inputs)
        key = (plan, canvas.tokens.shape)
        if key not in self._seen:
            self._seen.add(key)
            self.seconds_compiling += time.perf_counter() - started


@attrs.define(eq=False)
class Run:
    """One canvas being denoised, and what it took."""

    canvas: Canvas
    parts: Parts
    stop_ids: Tensor
    """(S,) int64"""
    effort: Effort = Effort()
    blocks: MovingBlocks | None = None
    """what places each row's block; None if all rows share theirs"""
    _block: Block = Block(0, 0)
    _sent: dict[tuple[str, tuple[int, ...]], Tensor] = attrs.field(factory=dict)
    _hidden: dict[tuple[int | None, ...], tuple[Tensor | None, Tensor | None]] = attrs.field(factory=dict)

    def denoise(self, planner: Planner, step_function: StepFunction, observers: Sequence[StepObserver]) -> None:
        """Make all steps."""
        for observer in observers:
            observer.start(self.canvas.tokens, self.canvas.spec)
        started, compiling = time.perf_counter(), step_function.seconds_compiling
        for step in planner.walk(self._facts):
            self.make(step, step_function)
            self.effort = self.effort.after(step, planner.layout.width)
            if observers:
                self._show(step, planner.layout.starts or None, observers)
        if self.canvas.tokens.is_cuda:
            torch.cuda.synchronize(self.canvas.tokens.device)
        took = time.perf_counter() - started, step_function.seconds_compiling - compiling
        self.effort = attrs.evolve(self.effort, seconds=took[0], compile_seconds=took[1])
        for observer in observers:
            observer.end()

    def make(self, step: Step, step_function: StepFunction) -> None:
        """Make one step."""
        self._block = step.block
        step_function(self.parts, step.plan, self.canvas, self._inputs(step))

    def _facts(self) -> Facts:
        return self.canvas.facts(self._block, self.stop_ids)

    def _inputs(self, step: Step) -> StepInputs:
        """Return the step's tensors: views of one range, and integers that are sent to the device once."""
        canvas, columns = self.canvas, self.canvas.columns
        block = (
            self._rows(columns[step.block.start : step.block.stop])
            if step.reach is None
            else own_blocks(canvas, step, self.blocks)
        )
        window, readers = placed(step, block, columns, lambda: self._rows(self._window(step)))
        bias, padding = self._seen(step)
        return StepInputs(
            window=window,
            block=block,
            readers=readers,
            counts=self._on_device(step.counts),
            step=self._behind(step),
            step_in_block=self._everywhere(step.moment.step_in_block, "step"),
            block_number=self._everywhere(step.moment.block, "block"),
            block_length=self._everywhere(own_length(step), "length"),
            bias=bias,
            keeps=None if step.keeps is None else self._keeps_on_device(step.keeps),
            padding=padding,
            borders=None if step.plan.written is None else self._on_device(step.borders).expand(len(canvas.tokens), 2),
        )

    def _behind(self, step: Step) -> Tensor:
        """Return (B,) int64, the steps that each row has behind it, those before its first block not counted."""
        run = torch.full_like(self.canvas.seeds, step.moment.step)
        return run if step.begun is None else (run - self._on_device(step.begun)).clamp(min=0)

    def _rows(self, x: Tensor) -> Tensor:
        return x.expand(self.canvas.tokens.shape[0], -1)

    def _everywhere(self, number: int, what: str) -> Tensor:
        """Return (B,) int64, one number for all rows, of those that come again from block to block."""
        return self._on_device((number,) * len(self.canvas.seeds), what)

    def _on_device(self, numbers: tuple[int, ...], what: str = "") -> Tensor:
        """Return integers as a tensor, sent once for each thing that they say: one tensor for two compiles a step anew."""
        if (what, numbers) not in self._sent:
            self._sent[what, numbers] = sent(numbers, self.canvas.columns.device)
        return self._sent[what, numbers]

    def _keeps_on_device(self, keeps: tuple[tuple[int, ...], ...]) -> Tensor:
        """Return (B, layers) int64."""
        return self._on_device(tuple(chain.from_iterable(keeps))).view(len(keeps), -1)

    def _window(self, step: Step) -> Tensor:
        """Return (N,) int64, a window that all rows share."""
        columns, start = self.canvas.columns, step.start or 0
        shared = columns[start : start + step.plan.window - len(step.beyond)]
        return torch.cat([shared, self._on_device(step.beyond)]) if step.beyond else shared

    def _seen(self, step: Step) -> tuple[Tensor | None, Tensor | None]:
        """Return the bias (R, L) of what attention may read, and the padding (R,) if that is all it hides."""
        key = step.sight, step.plan.visible, *(() if step.suffix is None else (step.block.stop, *step.suffix))
        if key not in self._hidden:
            self._hidden[key] = hidden(self.canvas, [step], self.parts.model.dtype)
        return self._hidden[key]

    def _show(self, step: Step, padding: tuple[int, ...] | None, observers: Iterable[StepObserver]) -> None:
        canvas = self.canvas
        record = StepRecord(
            step.moment,
            step.block,
            step.plan,
            canvas.tokens,
            canvas.by_column(canvas.committed),
            canvas.confidence,
            None if canvas.revoked is None else canvas.by_column(canvas.revoked),
            padding,
            canvas.by_column(canvas.guess),
            None if canvas.computed is None else canvas.by_column(canvas.computed),
            canvas.by_column(canvas.guess_confidence),
            None if canvas.edited is None else canvas.by_column(canvas.edited),
        )
        for observer in observers:
            observer.step(record)
