"""Breadth: weights in 8 bits, a cache in the host's memory at a long canvas, and memory beside what was predicted."""

from __future__ import annotations

from functools import partial

from esdllm import Catalogue
from esdllm.checkpoints.loading import Model
from esdllm.measure.benchmarking.memory import MemoryMeter
from esdllm.runtime.footprint import working_bytes
from on_gpu.ground import Ground


def run(ground: Ground) -> None:
    """Run the stage."""
    catalogue = Catalogue.load()
    long = 40 if ground.toy else 4096 - ground.setting["gen_length"]
    model: Model | None = ground.model(catalogue)
    for store in ("dense", "int8", "offloaded"):
        ground.attempt(f"canvas 4096, {store}", "ms a forward", partial(_one, ground, catalogue, model, store, long))
    model = None  # room for the next
    for kind in ("int8", "int8-weight-only"):
        ground.attempt(kind, "ms a forward", partial(_quantised, ground, catalogue, kind))


def _one(ground: Ground, catalogue: Catalogue, model: Model, store: str, length: int, rows: int = 2) -> float:
    engine = ground.build(model, catalogue, "es-dllm", f"cache={store}")
    given = ground.prompts(rows, length)
    meter = MemoryMeter(ground.device)
    engine.warm(*given.shape)
    engine.generate(given)
    found = engine.generate(given)
    if (taken := meter.read()) is not None and (shape := engine.cache_shape) is not None:
        planner = engine.planner(engine.components.layout(length, engine.model.spec, rows, ground.device))
        windows = [step.plan for step in planner.forecast()]
        spec, dtype = engine.model.spec, engine.model.adapter.dtype
        working = max(working_bytes(spec, rows, plan.window, plan.decided, dtype, ground.device) for plan in windows)
        ground.tell(f"canvas 4096, {store}", "GB taken", taken.bytes / 1e9)
        ground.tell(
            f"canvas 4096, {store}", "GB predicted", (engine.components.cache.memory(shape).device + working) / 1e9
        )
    engine.close()
    return 1e3 * found.seconds / found.forwards


def _quantised(ground: Ground, catalogue: Catalogue, kind: str) -> float:
    model = ground.model(catalogue, kind)
    engine = ground.build(model, catalogue, "es-dllm")
    given = ground.prompts(8)
    engine.warm(*given.shape)
    engine.generate(given)
    found = engine.generate(given)
    kinds: dict[str, list[float]] = {}
    for step in engine.clock.steps():
        kinds.setdefault(step.kind, []).append(1e3 * step.seconds)
    for name, taken in kinds.items():
        ground.tell(kind, f"ms: {name}", sorted(taken)[len(taken) // 2])
    engine.close()
    return 1e3 * found.seconds / found.forwards
