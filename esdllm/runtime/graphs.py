"""CUDA graphs of the step: the kernels of a plan's step, recorded once and started together from then on.

A graph reads and writes the addresses that it was recorded with. So it belongs to one canvas and one cache, which stand from run
to run, and what moves from step to step is copied into tensors of its own before it is replayed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor

from esdllm.plan import StepPlan
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.culprit import innermost
from esdllm.runtime.parts import Parts, StepInputs

__all__ = ["Capture", "CudaCapture", "StepGraphs", "current"]

_CALLED = ("model", "cache", "attention", "scorer", "sampler", "unmasking")
"""what a step calls of its parts"""

Step = Callable[[Parts, StepPlan, Canvas, StepInputs], None]


class Capture(Protocol):
    """What records steps."""

    def prepare(self, work: Callable[[], None]) -> None:
        """Run work that is recorded later."""
        ...

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` launches, without running it, and return what launches it again."""
        ...

    def forget(self) -> None:
        """Let go of what was recorded."""
        ...


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which a CUDA device is the current one, for events, streams and graphs are made for that."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class CudaCapture:
    """Records CUDA graphs that share their memory, since no two of them run at a time.

    Work is recorded, and made ready for it, on a stream of its own: libraries keep what they set up (handles, workspaces)
    by stream. Other threads may go on allocating meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = None
        self._pool: Any = None

    def prepare(self, work: Callable[[], None]) -> None:
        """Run `work` as it will be recorded, so that what libraries set up the first time is not part of it."""
        with current(self._device):
            self._stream = self._stream or torch.cuda.Stream()
            here = torch.cuda.current_stream()
            self._stream.wait_stream(here)
            with torch.cuda.stream(self._stream):
                work()
            here.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return what replays the kernels that `work` launches."""
        with current(self._device):
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
        return graph.replay

    def forget(self) -> None:
        """Let go of the graphs' memory: those recorded so far are not replayed again."""
        self._pool = None


@attrs.define
class _Recorded:
    """A plan's step over a canvas and a cache."""

    canvas: Canvas
    parts: Parts
    """held, so that no other canvas, cache or kernel has their ids"""
    inputs: StepInputs
    """the tensors that it reads"""
    replay: Callable[[], None] | None = None
    """None until it is recorded"""


@attrs.define(eq=False)
class StepGraphs:
    """A step that is recorded at the second time that its plan is made over the same canvas, and replayed from then on.

    A plan that comes once, such as a refresh of a whole prompt, is not worth a graph: its kernels take longer than their
    launches.
    """

    step: Step
    capture: Capture
    failure: str | None = attrs.field(default=None, init=False)
    """why steps are not recorded any more; None if they are"""
    made: int = attrs.field(default=0, init=False)
    """how many steps were run so that they could be recorded, or recorded"""
    _known: dict[Any, _Recorded] = attrs.field(factory=dict, init=False)

    def __call__(self, parts: Parts, plan: StepPlan, canvas: Canvas, inputs: StepInputs) -> None:
        """Make one step."""
        if self.failure is not None:
            self.step(parts, plan, canvas, inputs)
            return
        kernels = id(parts.scorer), id(parts.sampler), id(parts.unmasking), parts.cfg_scale, parts.delay_eos
        key = id(canvas), id(parts.cache), *kernels, plan, *(x is None for x in inputs)
        if key not in self._known:
            self.made += 1
            held = StepInputs(*(x.clone() if isinstance(x, Tensor) else x for x in inputs))  # type: ignore[arg-type]
            self._known[key] = _Recorded(canvas, parts, held)
            self.capture.prepare(lambda: self.step(parts, plan, canvas, held))
            return
        known = self._known[key]
        _fill(known.inputs, inputs)
        if known.replay is None:
            self.made += 1
            try:
                known.replay = self.capture.record(lambda: self.step(parts, plan, canvas, known.inputs))
            except torch.OutOfMemoryError:
                raise  # no component is to blame, and running would need as much
            except RuntimeError as error:
                self._give_up(error, parts)
                self.step(parts, plan, canvas, inputs)
                return
        known.replay()

    def forget(self) -> None:
        """Let go of the canvases, the caches and all that was recorded."""
        self._known.clear()
        self.capture.forget()

    def _give_up(self, error: RuntimeError, parts: Parts) -> None:
        """Go on without recording, and say so and who was to be recorded: what cannot be recorded can still be run."""
        self.forget()
        named = {id(x): f"{name} {type(x).__name__}: " for name in _CALLED if (x := getattr(parts, name))}
        self.failure = (innermost(error.__traceback__, named) or "") + str(error).splitlines()[0]
        warnings.warn(
            f"a step cannot be recorded as a CUDA graph, and runs without: {self.failure}; a component that waits for the "
            "device or copies from the host is the usual cause. cuda_graphs = false leaves recording out",
            RuntimeWarning,
            stacklevel=2,
        )


def _fill(held: StepInputs, inputs: StepInputs) -> None:
    """Copy a step's tensors into the recorded ones."""
    for old, new in zip(held, inputs, strict=True):
        if isinstance(old, Tensor) and isinstance(new, Tensor):
            old.copy_(new, non_blocking=True)
