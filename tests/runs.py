"""Short generations with random models, and an observer that keeps them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from esdllm import Catalogue, Engine, Generation, Model, StepPlan, StepRecord
from esdllm.runtime.run import StepFunction

MODELS = ("llada-0", "dream-0")
SHALLOW = ("llada-shallow", "dream-shallow")
"""the same with two layers, between which a step skips: quick to compile"""
MODES = ("vanilla", "prefix-cache", "dual-cache", "es-dllm")
SHORT: dict[str, Any] = {"gen_length": 24, "block_length": 8, "early_stop": False}
REFRESH = {"refresh": {"prompt_refresh": 8, "block_refresh": 4}}


class Build:
    """Makes engines whose runs are short."""

    def __init__(self, models: dict[str, Model], catalogue: Catalogue) -> None:
        self.models, self.catalogue = models, catalogue

    def __call__(self, model: str | Model, preset: str, **over: Any) -> Engine:
        """Return an engine for a model (one of `MODELS`, or as given) with settings over a preset."""
        base = {**SHORT, **(REFRESH if preset.startswith("es-dllm") else {}), **over}
        found = self.models[model] if isinstance(model, str) else model
        return Engine.build(found, self.catalogue.configure(preset, settings=base), self.catalogue)


def prompts(rows: int = 1, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Return random prompts, (rows, length) int64."""
    return torch.randint(0, 250, (rows, length), generator=torch.Generator().manual_seed(seed))


class Watch:
    """Keeps every record, and the tokens and commits that it showed."""

    def __init__(self) -> None:
        self.tokens: list[torch.Tensor] = []
        self.records: list[StepRecord] = []
        self.committed: list[torch.Tensor] = []
        self.revoked: list[torch.Tensor] = []
        self.edited: list[torch.Tensor] = []
        self.ended = False

    def start(self, tokens: torch.Tensor, spec: Any) -> None:
        """Keep the canvas."""
        self.tokens.append(tokens.clone())

    def step(self, record: StepRecord) -> None:
        """Keep the record."""
        self.records.append(record)
        self.tokens.append(record.tokens.clone())
        self.committed.append(record.committed.clone())
        if record.revoked is not None:
            self.revoked.append(record.revoked.clone())
        if record.edited is not None:
            self.edited.append(record.edited.clone())

    def end(self) -> None:
        """Note that the run is over."""
        self.ended = True


class Around(StepFunction):
    """A step function that calls another in its place, which may do something around an engine's own steps."""

    def __init__(self, call: Callable[..., None]) -> None:
        super().__init__(compiled=False)
        self._call = call

    def __call__(self, parts: Any, plan: StepPlan, canvas: Any, inputs: Any) -> None:
        """Make one step."""
        self._call(parts, plan, canvas, inputs)


class CountingFlops(Around):
    """A step function that counts the FLOPs of every step by torch's own counter."""

    def __init__(self, inner: StepFunction) -> None:
        super().__init__(inner)
        self.found: list[tuple[StepPlan, int]] = []

    def __call__(self, parts: Any, plan: StepPlan, canvas: Any, inputs: Any) -> None:
        """Make one step, and keep its plan and its FLOPs."""
        with FlopCounterMode(display=False) as counter:
            super().__call__(parts, plan, canvas, inputs)
        self.found.append((plan, counter.get_total_flops()))


def compiled(engine: Engine, rows: torch.Tensor) -> tuple[Generation, int, set[StepPlan]]:
    """Decode with each step compiled; return the result, how many graphs that made, and the distinct plans of its steps."""
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    engine.step_function, watch = StepFunction(compiled=True, backend=count), Watch()
    found = engine.generate(rows, observers=[watch])
    return found, len(graphs), {record.plan for record in watch.records}
