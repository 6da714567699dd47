"""A prompt decoded twice: once traced, once as it is, for the time of each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

from esdllm.errors import UnavailableError
from esdllm.interfaces import TextCodec
from esdllm.measure.tracing.recorder import TraceRecorder
from esdllm.measure.tracing.trace import Trace, TraceStep
from esdllm.runtime.engine import Engine
from esdllm.runtime.run import StepFunction
from esdllm.views import ModelSpec, StepRecord

__all__ = ["trace"]

Watch = Callable[[str, int, int], None]
"""takes the stage, the columns decided so far, and those to decide in all"""


def trace(
    engine: Engine,
    prompt: str | Sequence[int],
    *,
    name: str = "",
    model: str = "",
    chat: bool | None = None,
    seed: int | None = None,
    timed: bool = True,
    watch: Watch | None = None,
) -> Trace:
    """Return what a run does, under the name of its configuration and of its model.

    The engine's own components are wrapped for the run and left as they are. It is never compiled. With `timed` the prompt
    is decoded again, by the engine as it is, and each step's time taken; one that compiles or records steps runs
    once or twice more before. `watch` is told of every step.

    Raises:
        InputError: the prompt cannot be decoded; says why.
        UnavailableError: the cache store cannot hold the run, or the model's device computes no values.
    """
    if engine.model.adapter.device.type == "meta":
        raise UnavailableError("the device 'meta' computes no values, so there is nothing to trace; use cpu or cuda")
    row: Any = prompt if isinstance(prompt, str) else [list(prompt)]
    recorder, told = TraceRecorder(), watch or (lambda *_: None)
    config = attrs.evolve(engine.config, compile=False)
    with closing(Engine(engine.model, config, recorder.around(engine.components), StepFunction(False))) as traced:
        result = traced.generate(row, chat=chat, seed=seed, observers=[recorder, _Telling(told, "tracing")])
    steps = recorder.steps()
    if timed:
        clock = _clocked(engine, told, partial(engine.generate, row, chat=chat, seed=seed))
        steps = _with_times(steps, clock, clock.length - len(recorder.tokens))
    spec = engine.model.spec
    return Trace(
        name=name,
        model=model,
        n_layers=spec.n_layers,
        prompt=prompt if isinstance(prompt, str) else " ".join(str(token) for token in prompt),
        text=result.text[0] if result.text else "",
        config=engine.config.to_dict(),
        tokens=recorder.tokens,
        mask=spec.mask_id,
        shift=spec.logit_shift,
        pieces=_pieces(recorder, steps, engine.model.codec),
        steps=steps,
    )


def _clocked(engine: Engine, told: Watch, decode: Callable[..., object]) -> _Clock:
    """Return what a run took, step by step, after those that compile its steps and record them: when one comes again."""
    for _ in range(2 if engine.step_function.graphs else int(engine.config.compile)):
        decode(observers=[_Telling(told, "compiling")])
    clock = _Clock(told)
    decode(observers=[clock])
    return clock


class _Telling:
    """A step observer that tells how many columns are decided."""

    def __init__(self, watch: Watch, stage: str) -> None:
        self._watch, self._stage = watch, stage

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        self._decided, self._masks = 0, int((tokens == spec.mask_id).sum())
        self._watch(self._stage, 0, self._masks)

    def step(self, record: StepRecord) -> None:
        revoked = 0 if record.revoked is None else int(record.revoked.sum())
        self._decided += int(record.committed.sum()) - revoked
        self._watch(self._stage, self._decided, self._masks)

    def end(self) -> None:
        pass


class _Clock(_Telling):
    """A step observer that takes the time of each step, its own telling left out, and how the step was planned."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(watch, "timing")
        self.seconds: list[float] = []
        self.plans: list[tuple[int, tuple[int, ...]]] = []

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        super().start(tokens, spec)
        self._device, self.length, self._last = tokens.device, tokens.shape[1], time.perf_counter()

    def step(self, record: StepRecord) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds.append(time.perf_counter() - self._last)
        self.plans.append((record.moment.step, record.plan.keep))
        super().step(record)
        self._last = time.perf_counter()


def _with_times(steps: tuple[TraceStep, ...], clock: _Clock, room: int) -> tuple[TraceStep, ...]:
    """Return the steps with their times; without, where the second run went another way, as rounding may make it.

    The canvas of that run may have `room` columns more, which fill it up: its windows that begin with the canvas have them too.
    """
    if [number for number, _ in clock.plans] != [step.step for step in steps]:
        return steps
    if any(
        {a - b for a, b in zip(keep, step.keep, strict=True)} - {0, room}
        for (_, keep), step in zip(clock.plans, steps, strict=True)
    ):
        return steps
    return tuple(attrs.evolve(step, seconds=seconds) for step, seconds in zip(steps, clock.seconds, strict=True))


def _pieces(recorder: TraceRecorder, steps: Sequence[TraceStep], codec: TextCodec | None) -> Mapping[int, str]:
    """Return the text of every token that occurs; its id where there is no tokenizer."""
    found = set(recorder.tokens.tolist())
    for step in steps:
        found.update(step.committed.values())
        for one in step.candidates:
            found.update((one.token, *(token for token, _ in one.best)))
    if codec is None:
        return {token: str(token) for token in sorted(found)}
    return {token: codec.decode([token], keep_special=True) for token in sorted(found)}
