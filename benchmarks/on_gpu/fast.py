"""Fast: the presets beside each other at LLaDA-8B's geometry, by wall time, with graphs and without."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from functools import partial

import attrs
import torch

from esdllm import Catalogue, UnmaskingView, hookimpl
from esdllm.checkpoints.loading import Model
from esdllm.measure.benchmarking.peak import measure_peak
from esdllm.measure.cost import Costing, Roofline
from on_gpu.ground import Ground, replays

RAGGED = "es-dllm, prompts of 600 to 900 tokens"
ENTRIES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("dual-cache", "dual-cache", ()),
    ("es-dllm", "es-dllm", ()),
    ("es-dllm 256/16", "es-dllm", ("refresh.prompt_refresh=256",)),
    ("es-dllm, three a step as the logits decide", "es-dllm", ("unmasking=three-as-decided",)),
    (RAGGED, "es-dllm", ()),
    ("es-dllm, eager", "es-dllm", ("cuda_graphs=false",)),
    ("dual-cache, eager", "dual-cache", ("cuda_graphs=false",)),
)
_LARGE = 16  # rows from which a run takes long: without graphs is not measured, and no whole run is made to get warm


@attrs.frozen
class ThreeAsDecided:
    """Commits the three best of a row, as if the logits decided how many: what parallel decoding costs with random weights."""

    def counts(self, masked: int, blocks: int) -> None:
        """Return None: planning is to ask the device."""

    def select(self, view: UnmaskingView) -> torch.Tensor:
        """Return the three best."""
        score = view.confidence.masked_fill(~view.eligible, float("-inf"))
        top = score.topk(min(3, score.shape[1]), dim=1).indices
        return torch.zeros_like(view.eligible).scatter(1, top, True) & view.eligible


@hookimpl
def esdllm_unmasking_policies() -> dict[str, type[ThreeAsDecided]]:
    """Offer it."""
    return {"three-as-decided": ThreeAsDecided}


def run(ground: Ground, batch: int) -> None:
    """Run the stage."""
    import on_gpu.fast as here

    catalogue = Catalogue.load({"on-gpu": here})
    model = ground.model(catalogue)
    peak = measure_peak(ground.device, ground.dtype, shapes=((64, 64, 64),) if ground.toy else None)
    ground.tell("peak", "TFLOP/s", peak.best.gflops / 1e3)
    ground.tell("peak", "GB/s", peak.bandwidth)
    given = ground.prompts(batch)
    for name, preset, sets in ENTRIES:
        if batch >= _LARGE and ("eager" in name or name == RAGGED):
            continue
        timing = partial(_time, ground, catalogue, model, peak.roofline, given, name, preset, sets)
        ground.attempt(name, "ms a forward", timing)
    ground.attempt("vanilla", "ms a forward", partial(_vanilla, ground, catalogue, model, given))


def _time(
    ground: Ground,
    catalogue: Catalogue,
    model: Model,
    roofline: Roofline,
    given: torch.Tensor,
    name: str,
    preset: str,
    sets: tuple[str, ...],
) -> float:
    engine = ground.build(model, catalogue, preset, *sets)
    rows, length = given.shape
    shortest = 2 * length // 3
    ragged = [row[(length - shortest) * number // rows :].tolist() for number, row in enumerate(given)]
    prompts = ragged if name == RAGGED else given
    if not engine.warm(rows, length) or rows < _LARGE:
        engine.generate(prompts)
    found = engine.generate(prompts)
    ground.tell(name, "tokens a second", found.committed / found.seconds)
    ground.tell(name, "seconds", found.seconds)
    ground.tell(name, "forwards", found.forwards)
    itemsize = model.adapter.dtype.itemsize
    columns = engine.components.layout(length, model.spec, device=model.adapter.device).length
    costing = Costing.of(engine.components, model.spec, rows, columns, itemsize, ground.weight_bytes(catalogue))
    kinds: dict[str, list[float]] = {}
    floors: dict[str, float] = defaultdict(float)
    for step in engine.clock.steps():
        kind = f"{step.kind}, {step.window}"
        kinds.setdefault(kind, []).append(1e3 * step.seconds)
        floors[kind] += 1e3 * costing.step(step.plan).seconds(roofline)
    for kind, taken in kinds.items():
        ground.tell(name, f"ms: {kind} ({len(taken)})", statistics.median(taken))
        ground.tell(name, f"over its floor: {kind}", sum(taken) / floors[kind])
    alone = {plan: ground.milliseconds(replay) for plan, replay in replays(engine).items()}
    if alone:
        busy = sum(alone.get(step.plan, 1e3 * step.seconds) for step in engine.clock.steps())
        ground.tell(name, "device idle, %", 100 * (1 - busy / 1e3 / found.seconds))
    engine.close()
    return 1e3 * found.seconds / found.forwards


def _vanilla(ground: Ground, catalogue: Catalogue, model: Model, given: torch.Tensor) -> float:
    engine = ground.build(model, catalogue, "vanilla", sample=2)
    engine.generate(given)
    began = time.perf_counter()
    found = engine.generate(given)
    ground.wait()
    return 1e3 * (time.perf_counter() - began) / found.forwards
