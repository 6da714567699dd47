"""A run: the steps of one canvas, one after the other. Everything is resolved before, everything is read after."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from esdllm.canvas import Canvas
from esdllm.forward import Parts, StepInputs
from esdllm.interfaces import StepObserver
from esdllm.plan import Block, Facts, Step, StepPlan
from esdllm.schedule import Planner
from esdllm.step import denoise
from esdllm.views import StepRecord

__all__ = ["Run", "StepFunction"]

_GRAPHS = 4096  # that one process may hold; torch's own limits (8 and 256) are meant to find accidental recompiling
_LIMITS = ("recompile_limit", "accumulated_recompile_limit", "cache_size_limit", "accumulated_cache_size_limit")


class StepFunction:
    """The step, eager or compiled once for each distinct plan."""

    def __init__(self, compiled: bool, backend: Any = "inductor") -> None:
        self.seconds_compiling = 0.0
        """wall-clock time of the first call of each compiled plan"""
        self._compiled = compiled
        self._seen: set[tuple[StepPlan, torch.Size]] = set()
        if compiled:  # torch._dynamo takes a second to import, which eager decoding does not need
            config = torch._dynamo.config
            self._limits = config.patch({name: _GRAPHS for name in _LIMITS if hasattr(config, name)})
            self._step = torch.compile(denoise, fullgraph=True, dynamic=False, backend=backend)

    def __call__(self, parts: Parts, plan: StepPlan, canvas: Canvas, inputs: StepInputs) -> None:
        """Make one step."""
        if not self._compiled:
            denoise(parts, plan, canvas, inputs)
            return
        started = time.perf_counter()
        with self._limits:
            self._step(parts, plan, canvas, inputs)
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
    steps: int = 0
    layer_work: int = 0
    """positions computed, summed over layers and steps"""
    seconds: float = 0.0
    compile_seconds: float = 0.0
    _block: Block = Block(0, 0)
    _counts: dict[tuple[int, ...], Tensor] = attrs.field(factory=dict)

    def denoise(self, planner: Planner, step_function: StepFunction, observers: Sequence[StepObserver]) -> None:
        """Make all steps."""
        for observer in observers:
            observer.start(self.canvas.tokens, self.canvas.spec)
        started, compiling = time.perf_counter(), step_function.seconds_compiling
        for step in planner.walk(self._facts):
            self._block = step.block
            step_function(self.parts, step.plan, self.canvas, self._inputs(step))
            self.steps, self.layer_work = self.steps + 1, self.layer_work + step.plan.layer_work()
            if observers:
                self._show(step, observers)
        if self.canvas.tokens.is_cuda:
            torch.cuda.synchronize(self.canvas.tokens.device)
        self.seconds = time.perf_counter() - started
        self.compile_seconds = step_function.seconds_compiling - compiling
        for observer in observers:
            observer.end()

    def _facts(self) -> Facts:
        return self.canvas.facts(self._block, self.stop_ids)

    def _inputs(self, step: Step) -> StepInputs:
        """Return the step's tensors: views of one range, and counts that are sent to the device once."""
        columns, rows = self.canvas.columns, self.canvas.tokens.shape[0]
        if step.counts not in self._counts:
            self._counts[step.counts] = torch.tensor(step.counts).to(columns.device, non_blocking=True)
        first = step.block.start - step.start
        return StepInputs(
            window=columns[step.start : step.start + step.plan.window].expand(rows, -1),
            block=columns[step.block.start : step.block.stop].expand(rows, -1),
            readers=columns[first : first + step.plan.block],
            counts=self._counts[step.counts],
            step=torch.full((), step.moment.step, dtype=torch.int64, device=columns.device),
        )

    def _show(self, step: Step, observers: Iterable[StepObserver]) -> None:
        canvas = self.canvas
        record = StepRecord(
            step.moment, step.block, step.plan, canvas.tokens, canvas.committed_columns(), canvas.confidence
        )
        for observer in observers:
            observer.step(record)
