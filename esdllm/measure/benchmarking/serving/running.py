"""Loads one after another: on an engine, in slots and if asked in static batches, or on a server at an address."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from esdllm.measure.benchmarking.serving.driving import Target, drive
from esdllm.measure.benchmarking.serving.remote import ServerTarget, Watching
from esdllm.measure.benchmarking.serving.report import STATIC, ServeRun
from esdllm.measure.benchmarking.serving.targets import SessionTarget, static_batches
from esdllm.measure.benchmarking.serving.traffic import Load, Wanted
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.engine import Engine
from esdllm.runtime.prompts import prepare
from esdllm.serving.scheduler import Policy
from esdllm.serving.session import Session

__all__ = ["bench_engine", "bench_server"]

Tell = Callable[[], None]


def bench_engine(
    engine: Engine,
    loads: Sequence[Load],
    wanted: Sequence[Wanted],
    *,
    slots: int,
    max_queue: int | None = None,
    policy: Policy | None = None,
    static: bool = False,
    seed: int = 0,
    catalogue: Catalogue | None = None,
    tell: Tell = lambda: None,
) -> list[ServeRun]:
    """Return a run of each load over slots that are as long as the longest request, and of `static` batches of as many rows.

    Where `max_queue` is None, all may wait; `policy` says whose steps go first, if told. Before each run one request is decoded
    unmeasured. `tell` is called after each measured request.

    Raises:
        InputError: a request cannot be decoded.
        ConfigError, UnavailableError: as `Session.open`.
    """
    catalogue = catalogue or Catalogue.load()
    length = max(_canvas_length(engine, one) for one in wanted)
    queue = len(wanted) if max_queue is None else max_queue
    runs = []
    for load in loads:
        with Session.open(
            engine, slots=slots, length=length, max_queue=queue, policy=policy, catalogue=catalogue
        ) as session:
            target = SessionTarget(session, whole=not engine.config.early_stop)
            _warm(target, wanted)
            before = session.state()
            run = _measured("slots", target, load, wanted, slots, seed, tell)
            after = session.state()
        rows = (after.row_steps - before.row_steps) / max(1, after.forwards - before.forwards)
        runs.append(attrs.evolve(run, rows_a_step=rows))
        if static:
            with static_batches(engine, slots, catalogue) as batches:
                _warm(batches, wanted)
                runs.append(_measured(STATIC, batches, load, wanted, slots, seed, tell))
    return runs


def _canvas_length(engine: Engine, wanted: Wanted) -> int:
    """Return the columns that a request takes, its prompt and its answer.

    Raises:
        InputError: it cannot be decoded.
    """
    prepared = prepare(engine.model, [wanted.prompt], None, wanted.max_tokens, False, None)
    return prepared.tokens.shape[1]


def bench_server(
    target: ServerTarget, loads: Sequence[Load], wanted: Sequence[Wanted], *, seed: int = 0, tell: Tell = lambda: None
) -> list[ServeRun]:
    """Return a run of each load on a server; see `bench_engine`."""
    runs = []
    for load in loads:
        _warm(target, wanted)
        with Watching(target) as watching:
            run = _measured(target.url, target, load, wanted, None, seed, tell)
        runs.append(attrs.evolve(run, slots=watching.slots, looks=tuple(watching.looks)))
    return runs


def _warm(target: Target, wanted: Sequence[Wanted]) -> None:
    drive(target, wanted[:1], Load(concurrency=1))


def _measured(
    name: str, target: Target, load: Load, wanted: Sequence[Wanted], slots: int | None, seed: int, tell: Tell
) -> ServeRun:
    return ServeRun(name, load, slots, tuple(drive(target, wanted, load, seed, tell)))
