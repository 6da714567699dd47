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

_PLANS = 512  # distinct plans that one engine may compile


class StepFunction:
    """The step, eager or compiled once for each distinct plan."""

    def __init__(self, compiled: bool, backend: Any = "inductor") -> None:
        self.seconds_compiling = 0.0
        """wall-clock time of the first call of each compiled plan"""
        self._compiled = compiled
        self._seen: set[tuple[StepPlan, torch.Size]] = set()
        self._step = torch.compile(denoise, fullgraph=True, dynamic=False, backend=backend) if compiled else denoise

    def __call__(self, parts: Parts, plan: StepPlan, canvas: Canvas, inputs: StepInputs) -> None:
        """Make one step."""
        if not self._compiled:
            denoise(parts, plan, canvas, inputs)
            return
        started = time.perf_counter()
        config = torch._dynamo.config  # imported by this line: a second that eager decoding does not need
        limit = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
        with config.patch({limit: _PLANS}):
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
            torch.cuda.synchronize()
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
            self._counts[step.counts] = torch.tensor(step.counts, device=columns.device)
        first = step.block.start - step.start
        return StepInputs(
            window=columns[step.start : step.start + step.plan.window].expand(rows, -1),
            block=columns[step.block.start : step.block.stop].expand(rows, -1),
            readers=columns[first : first + step.plan.block],
            counts=self._counts[step.counts],
            step=columns.new_tensor(step.moment.step)
            if step.moment.step >= columns.shape[0]
            else columns[step.moment.step],
        )

    def _show(self, step: Step, observers: Iterable[StepObserver]) -> None:
        canvas = self.canvas
        record = StepRecord(
            step.moment, step.block, step.plan, canvas.tokens, canvas.committed_columns(), canvas.confidence
        )
        for observer in observers:
            observer.step(record)
