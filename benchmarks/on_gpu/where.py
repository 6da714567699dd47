"""Where: the kernels of a skip step and of a block's refresh, and what they take; their number; the gaps between them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from esdllm import Catalogue
from on_gpu.ground import Ground, replays

_TIMES = 3  # replays that are profiled
_TOP = 24  # kernels that are told


def run(ground: Ground, batch: int) -> None:
    """Run the stage."""
    catalogue = Catalogue.load()
    model = ground.model(catalogue)
    for rows in (batch, 1):
        engine = ground.build(model, catalogue, "es-dllm")
        engine.warm(*ground.prompts(rows).shape)
        engine.generate(ground.prompts(rows))
        block, seen = engine.config.block_length, set()
        for plan, replay in replays(engine).items():
            kind = "skip" if plan.skips else "refresh of the block" if plan.window == block else "refresh of the prompt"
            if kind not in seen:  # one of each kind
                seen.add(kind)
                of = f"batch {rows}, {kind}"
                ground.attempt(of, "gaps", partial(_profile, ground, of, replay))
        engine.close()


def _profile(ground: Ground, of: str, replay: Callable[[], None]) -> str:
    alone = ground.milliseconds(replay, 20)
    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(_TIMES):
            replay()
        ground.wait()
    spent: dict[str, list[float]] = defaultdict(list)
    for event in profiler.events():
        if event.device_type == DeviceType.CUDA:
            spent[event.name].append(event.device_time / 1e3)
    busy = sum(map(sum, spent.values())) / _TIMES
    ground.tell(of, "launches", sum(map(len, spent.values())) / _TIMES)
    ground.tell(of, "ms in kernels", busy)
    ground.tell(of, "ms a replay", alone)
    for name, taken in sorted(spent.items(), key=lambda item: -sum(item[1]))[:_TOP]:
        ground.tell(of, f"{len(taken) / _TIMES:.0f} x {name[:90]}", sum(taken) / _TIMES)
    return f"{100 * (1 - busy / alone):.1f} %" if alone else "no device"
