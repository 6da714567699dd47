"""What watches a run from outside the step."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from esdllm.views import ModelSpec, StepRecord

__all__ = ["StepObserver"]


class StepObserver(Protocol):
    """Watches a run from outside the step. May read the device; costs nothing when absent."""

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Take the canvas (B, L) before the first step."""
        ...

    def step(self, record: StepRecord) -> None:
        """Take one step's record."""
        ...

    def end(self) -> None:
        """The run is over."""
        ...
