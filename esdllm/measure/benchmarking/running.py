"""Measuring contenders side by side: warm-up, then rounds in which all take turns."""

from __future__ import annotations

import platform
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import attrs
import torch

from esdllm.checkpoints.loading import Model
from esdllm.errors import InputError, UnavailableError
from esdllm.measure.benchmarking.memory import MemoryMeter, Waiting
from esdllm.measure.benchmarking.peak import Peak, measure_peak
from esdllm.measure.benchmarking.profiling import profile
from esdllm.measure.benchmarking.report import KindTimes, Report, Timing, quartiles
from esdllm.measure.benchmarking.runners import EngineRunner, Runner, Sample, runner
from esdllm.measure.benchmarking.setting import BenchContender, Setting
from esdllm.measure.cost import Costing
from esdllm.plugins.catalogue import Catalogue

__all__ = ["bench", "decoded", "environment", "own_peak", "threads", "timing", "turns", "work_shares"]


def bench(
    setting: Setting,
    contenders: Sequence[BenchContender],
    *,
    rounds: int = 5,
    profiled: bool = False,
    peak: Callable[[Model], Peak | None] | None = None,
    catalogue: Catalogue | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Return what each contender takes, all in this process.

    Every contender decodes once unmeasured; then each round has one run of each, and another
    begins each round. `profiled` adds a run with a clock around every component. `peak` measures the machine, by default as
    `measure_peak`; one that returns None leaves it out. `progress` is called with the name of a contender after each of its
    runs.

    Raises:
        InputError: no contender or round, or a prompt that does not fit.
        CheckpointError, ConfigError, UnavailableError: the model cannot be loaded, or a contender not be run with it here.
    """
    if not contenders or rounds < 1:
        raise InputError(f"{len(contenders)} contenders and {rounds} rounds; give at least one of each")
    catalogue, setting = catalogue or Catalogue.load(), setting.on_device()
    if setting.device == "meta":
        raise UnavailableError("the device 'meta' computes no values; use cpu or cuda")
    tell = progress or (lambda name: None)
    with threads(setting.threads):
        model, weights = setting.load(catalogue), setting.weights(catalogue).bytes
        runners = [runner(contender, setting, model, catalogue) for contender in contenders]
        costings = [one.costing(weights) for one in runners]
        warm = [decoded(one, tell, warming=True) for one in runners]
        samples: list[list[Sample]] = [[] for _ in runners]
        for number in turns(len(runners), rounds):
            samples[number].append(decoded(runners[number], tell))
        shares = [work_shares(one, tell) if profiled else None for one in runners]
        found = (peak or own_peak)(model)
    timings = [
        timing(one.contender, samples[number], warm[number], costings[number], shares[number])
        for number, one in enumerate(runners)
    ]
    return Report(setting, rounds, False, environment(model), weights, found, tuple(timings))


def turns(contenders: int, rounds: int) -> Iterator[int]:
    """Yield whose turn it is: every contender once per round, another first in each round."""
    for turn in range(rounds):
        yield from ((turn + place) % contenders for place in range(contenders))


def decoded(one: Runner, tell: Callable[[str], None], warming: bool = False) -> Sample:
    """Return a run, with the memory that it took and how much it waited for a processor.

    The first one, `warming`, tells the memory of a contender that keeps it until the next; of others it is not measured then.
    """
    meter, waiting = MemoryMeter(one.device), Waiting()
    sample = attrs.evolve(one.run(), waiting=waiting.read())
    if warming:
        one.warm()
    sample = attrs.evolve(sample, memory=meter.read() if one.keeps or not warming else None)
    one.rest()
    tell(one.contender.name)
    return sample


def work_shares(one: Runner, tell: Callable[[str], None]) -> dict[str, dict[str, float]] | None:
    """Return the share of the time that each kind of work takes, by kind of step; None for the bare loop."""
    found = profile(one.engine, one.prompts) if isinstance(one, EngineRunner) else None
    one.rest()
    tell(one.contender.name)
    return found


def own_peak(model: Model) -> Peak:
    """Return what the model's device does at best."""
    adapter = model.adapter
    return measure_peak(adapter.device, adapter.dtype, adapter)


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Let torch use that many threads."""
    if number < 1:
        raise InputError(f"threads = {number}; give at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timing(
    contender: BenchContender,
    samples: Sequence[Sample],
    first: Sample,
    costing: Costing,
    shares: Mapping[str, Mapping[str, float]] | None = None,
) -> Timing:
    """Return what a contender took, of its measured runs and the one before them."""
    last, waits = samples[-1], [sample.waiting for sample in samples if sample.waiting is not None]
    between = [1e3 * (s.seconds - sum(t.weight * t.seconds for t in s.steps)) / max(1, s.forwards) for s in samples]
    return Timing(
        name=contender.name,
        config=contender.config.to_dict(),
        bare=contender.bare,
        seconds=tuple(sample.seconds for sample in samples),
        forwards=last.forwards,
        answer_tokens=last.answer_tokens,
        committed=last.committed,
        compile_seconds=first.compile_seconds,
        flops=costing.run((step.plan, step.weight) for step in last.steps),
        memory=max((s.memory for s in (first, *samples) if s.memory), key=lambda found: found.bytes, default=None),
        kinds=_kinds(samples, costing),
        between_milliseconds=quartiles(between),
        waiting=statistics.median(waits) if waits else None,
        shares=shares,
    )


def _kinds(samples: Sequence[Sample], costing: Costing) -> tuple[KindTimes, ...]:
    groups = defaultdict(list)
    for sample in samples:
        for step in sample.steps:
            groups[step.kind, step.window].append(step)
    found = []
    for (kind, window), steps in groups.items():
        costs = [(step.weight, costing.step(step.plan)) for step in steps]
        weight = sum(step.weight for step in steps)
        found.append(
            KindTimes(
                kind=kind,
                window=window,
                steps=round(weight / len(samples)),
                milliseconds=quartiles([1e3 * step.seconds for step in steps for _ in range(round(step.weight))]),
                flops=sum(share * cost.flops for share, cost in costs) / weight,
                bytes=sum(share * cost.bytes for share, cost in costs) / weight,
            )
        )
    return tuple(found)


def environment(model: Model) -> dict[str, Any]:
    """Return versions and machine."""
    device = model.adapter.device
    return {
        "esdllm": version("esdllm"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "dtype": str(model.adapter.dtype).removeprefix("torch."),
        "compute": model.compute,
        "spec": attrs.asdict(model.spec),
    }


def _processor() -> str:
    """Return the processor's name; its architecture where the system does not tell."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
