"""Measuring each run in a process of its own: nothing that an earlier run left behind plays a part."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import cattrs

from esdllm.checkpoints.loading import resolve_device
from esdllm.config import DecodeConfig
from esdllm.errors import EsdllmError, InputError, UnavailableError
from esdllm.measure.benchmarking.clock import StepTime
from esdllm.measure.benchmarking.peak import Peak
from esdllm.measure.benchmarking.report import Report
from esdllm.measure.benchmarking.runners import Sample
from esdllm.measure.benchmarking.running import timing, turns
from esdllm.measure.benchmarking.setting import BenchContender, Setting
from esdllm.measure.cost import Costing
from esdllm.plan import Phase, StepPlan
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components

__all__ = ["CONVERTER", "Found", "Job", "bench_fresh"]


@attrs.frozen
class Job:
    """What a process is to measure."""

    setting: Setting
    contender: BenchContender | None
    """None to measure the machine's peak"""
    profiled: bool = False


@attrs.frozen
class Found:
    """What it found."""

    sample: Sample
    first: Sample
    shares: Mapping[str, Mapping[str, float]] | None
    environment: Mapping[str, Any]


def bench_fresh(
    setting: Setting,
    contenders: Sequence[BenchContender],
    *,
    rounds: int = 5,
    profiled: bool = False,
    peak: bool = True,
    catalogue: Catalogue | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Return what `bench` does, each run measured in a new process after a run that is not.

    Raises:
        EsdllmError: what a process said, or how it ended.
    """
    if not contenders or rounds < 1:
        raise InputError(f"{len(contenders)} contenders and {rounds} rounds; give at least one of each")
    catalogue, setting = catalogue or Catalogue.load(), setting.on_device()
    weights = setting.weights(catalogue)
    found: list[list[Found]] = [[] for _ in contenders]
    for number in turns(len(contenders), rounds):
        contender, first = contenders[number], not found[number]
        job = Job(setting, contender, profiled and first)
        found[number].append(CONVERTER.structure(_ask(job), Found))
        if progress:
            progress(contender.name)
    best = CONVERTER.structure(_ask(Job(setting, None)), Peak) if peak else None
    timings = []
    for contender, runs in zip(contenders, found, strict=True):
        components = Components.resolve(contender.config, catalogue)
        length = components.layout(setting.prompt_length, weights.spec, device=resolve_device(setting.device)).length
        costing = Costing.of(components, weights.spec, setting.batch, length, weights.dtype.itemsize, weights.bytes)
        samples = [run.sample for run in runs]
        timings.append(timing(contender, samples, runs[0].first, costing, runs[0].shares))
    return Report(setting, rounds, True, found[0][0].environment, weights.bytes, best, tuple(timings))


def _ask(job: Job) -> Any:
    """Return what a new process makes of a job."""
    command = [sys.executable, "-m", "esdllm.measure.benchmarking.worker"]
    done = subprocess.run(command, input=json.dumps(CONVERTER.unstructure(job)), text=True, stdout=subprocess.PIPE)
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        name = job.contender.name if job.contender else "the machine's peak"
        raise UnavailableError(
            f"the process that measured {name} ended with {done.returncode} and no result; a negative number is the "
            "signal that ended it, -9 mostly for want of memory"
        ) from None
    if "error" in answer:
        raise EsdllmError(answer["error"])
    return answer["found"]


def _step_to_dict(step: StepTime) -> dict[str, Any]:
    plan = step.plan._asdict()
    return {**step._asdict(), "plan": {**plan, "phase": step.plan.phase.value}}


def _step_from_dict(found: Mapping[str, Any]) -> StepTime:
    plan: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in found["plan"].items()
    }
    plan["phase"] = Phase(plan["phase"])
    return StepTime(found["kind"], found["window"], StepPlan(**plan), found["seconds"])


CONVERTER = cattrs.Converter()
"""Jobs and what was found, to plain dicts and back."""
CONVERTER.register_structure_hook_func(lambda kind: kind == Mapping[str, Any], lambda value, _: dict(value))
CONVERTER.register_unstructure_hook_func(lambda kind: kind is DecodeConfig, DecodeConfig.to_dict)
CONVERTER.register_structure_hook_func(
    lambda kind: kind is DecodeConfig, lambda value, _: DecodeConfig.from_dict(value)
)
CONVERTER.register_unstructure_hook_func(lambda kind: kind is StepTime, _step_to_dict)
CONVERTER.register_structure_hook_func(lambda kind: kind is StepTime, lambda value, _: _step_from_dict(value))
