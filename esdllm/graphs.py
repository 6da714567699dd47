"""CUDA graphs of the step: the kernels of a plan's step, recorded once and started together from then on.

A graph reads and writes the addresses that it was recorded with. So it belongs to one canvas and one cache, and what moves from
step to step is copied into tensors of its own before it is replayed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor

from esdllm.canvas import Canvas
from esdllm.forward import Parts, StepInputs
from esdllm.plan import StepPlan

__all__ = ["Capture", "CudaCapture", "StepGraphs"]

Step = Callable[[Parts, StepPlan, Canvas, StepInputs], None]
Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Records what a function launches, without running it, and returns what launches it again."""


class CudaCapture:
    """Records CUDA graphs that share their memory, since no two of them run at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what replays the kernels that `work` launches."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            work()
        self._pool = self._pool or graph.pool()
        return graph.replay


@attrs.define
class _Recorded:
    """A plan's step."""

    inputs: StepInputs
    """the tensors that it reads"""
    replay: Callable[[], None] | None = None
    """None until it is recorded"""


@attrs.define(eq=False)
class StepGraphs:
    """A step that is recorded at the second time that its plan is made over the same canvas, and replayed from then on."""

    step: Step
    capture: Capture = attrs.field(factory=CudaCapture)
    _owner: tuple[Canvas, Any] | None = None
    _known: dict[Any, _Recorded] = attrs.field(factory=dict)

    def __call__(self, parts: Parts, plan: StepPlan, canvas: Canvas, inputs: StepInputs) -> None:
        """Make one step."""
        if self._owner is None or self._owner[0] is not canvas or self._owner[1] is not parts.cache:
            self._owner = canvas, parts.cache
            self._known.clear()
        key = plan, inputs.bias is None, inputs.padding
        if key not in self._known:  # once as it is: libraries set themselves up, which must not be recorded
            held = StepInputs(*(x.clone() if isinstance(x, Tensor) else x for x in inputs))  # type: ignore[arg-type]
            self._known[key] = _Recorded(held)
            self.step(parts, plan, canvas, held)
            return
        known = self._known[key]
        _fill(known.inputs, inputs)
        if known.replay is None:
            known.replay = self.capture(lambda: self.step(parts, plan, canvas, known.inputs))
        known.replay()


def _fill(held: StepInputs, inputs: StepInputs) -> None:
    """Copy a step's tensors into the recorded ones."""
    for old, new in zip(held, inputs, strict=True):
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            old.copy_(new, non_blocking=True)
