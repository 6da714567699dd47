"""Checks of whole generations: any configuration or component, decoding with a tiny model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import SkipTest
from unittest.mock import patch

import attrs
import torch
from torch import Tensor

from esdllm.checkpoints.loading import Model
from esdllm.config import DEFAULT_PRESET, SECTIONS, DecodeConfig
from esdllm.errors import InputError, UnavailableError, known
from esdllm.plan import Phase, Window
from esdllm.plugins.capabilities import attention_problems
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.beginning import begin
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.engine import Engine
from esdllm.runtime.prompts import prepare
from esdllm.runtime.records import Generation
from esdllm.runtime.run import StepFunction
from esdllm.testing.contracts.laws import law
from esdllm.testing.meta import KnownShapes
from esdllm.testing.models import GEOMETRIES, tiny_model
from esdllm.views import ModelSpec, StepRecord

__all__ = ["SHORT", "check_generation", "generation_laws", "prompts", "short_config"]

SHORT: Mapping[str, Any] = {"gen_length": 12, "block_length": 6, "early_stop": False}
"""Settings of the generations that the checks run."""

_REFRESH = {"refresh": {"prompt_refresh": 6, "block_refresh": 3}}  # so that a short run has refreshes and skips
_UNCACHED = {"refresh": "every-step", "skip": "none"}


def check_generation(
    config: DecodeConfig | None = None,
    *,
    model: Model | None = None,
    catalogue: Catalogue | None = None,
    compiled: bool = False,
    **components: Any,
) -> None:
    """Check whole generations under a configuration, with components put in by section: `check_generation(skip=MySkip())`.

    Every mask is decided, the prompt stays, and so does what was committed, unless the policy puts it back; a second run
    is the first; a row of a left-padded batch is the row alone, where no row has a say in what another computes; permuted
    rows permute; between two questions that planning asks, nothing is read from the device (the run is repeated on the
    meta device, where any read raises). With `compiled`, the step compiles into one graph a plan and gives eager's tokens,
    which takes seconds.

    Rows have a say in each other's computing, as published, where a window goes back to what any of them committed last
    (`TRAIL`, `OPEN`) or by whether all have decided their first token (`TOKENS`), where layers skip as many positions as the
    row that committed most asks for, where a refresh policy learns from the drift of the row that drifted most, and where a
    policy may put back what a row has decided while others are still at the block. A cache store that chooses what is read is
    given rows of one length: among padding it may choose otherwise.

    The configuration is early skipping at a short length unless given; it runs on tiny random models of two families, one
    with a logit shift and grouped queries, unless `model` is given, which is not repeated on the meta device.

    Raises:
        AssertionError: a law fails; says which.
        InputError: `components` names no section.
        unittest.SkipTest: a component cannot serve on the CPU; gives its reasons. pytest counts the test as skipped.
    """
    for section in components:
        if section not in SECTIONS:
            raise InputError(f"there is no section '{section}' to put a component into; {known(section, SECTIONS)}")
    catalogue = catalogue or Catalogue.load()
    config = config or short_config(catalogue, components.get("cache"))
    if model:
        generation_laws(_engine(model, config, catalogue, components), compiled=compiled)
        return
    for family in GEOMETRIES:
        twin = tiny_model(family, "meta", catalogue) if family == "Dream" else None  # one family is enough for that
        generation_laws(
            _engine(tiny_model(family, "cpu", catalogue), config, catalogue, components),
            None if twin is None else partial(_engine, twin, config, catalogue, components),
            compiled,
        )


def short_config(catalogue: Catalogue, cache: Any = None, skips: bool = True) -> DecodeConfig:
    """Return the default preset at a short length; computing everything at every step where `cache` keeps nothing."""
    chosen: Mapping[str, Any] = _REFRESH if skips else {**_REFRESH, "skip": "none"}
    if cache is not None and not cache.persistent:
        chosen = _UNCACHED
    return catalogue.configure(DEFAULT_PRESET, settings={**SHORT, **chosen})


def prompts(model: Model, lengths: Sequence[int] = (13, 9, 11)) -> list[list[int]]:
    """Return prompts of these lengths, of tokens that are no special ones, always the same."""
    draw = torch.Generator().manual_seed(sum(lengths))
    top = min(model.spec.mask_id, model.spec.eos_id, model.spec.vocab)
    return [torch.randint(0, top, (length,), generator=draw).tolist() for length in lengths]


def _engine(model: Model, config: DecodeConfig, catalogue: Catalogue, components: Mapping[str, Any]) -> Engine:
    """Return an engine with `components` in place of the configuration's."""
    engine = Engine.build(model, config, catalogue)
    engine.components = attrs.evolve(engine.components, **components)
    adapter = model.adapter
    if "attention" in components:
        told = attention_problems(engine.components.attention, adapter.spec, adapter.device, adapter.dtype)
        _skip_if(components["attention"], told)
    layout = engine.components.layout(13, adapter.spec)
    planner = engine.planner(layout)
    planner.forecast()  # finds contradictions
    if "cache" in components:
        shape = engine.components.cache_shape(
            adapter.spec, planner.skip_layers(), 3, layout.length, adapter.device, adapter.dtype
        )
        _skip_if(components["cache"], engine.components.cache.problems(shape))
    return engine


def _skip_if(component: Any, problems: Sequence[str]) -> None:
    if problems:
        raise SkipTest(f"{component!r} cannot serve here: {'; '.join(problems)}")


def generation_laws(engine: Engine, on_meta: Callable[[], Engine] | None = None, compiled: bool = False) -> Generation:
    """Return a generation of the engine, having checked the laws of `check_generation`.

    `on_meta` makes the same engine on the meta device; it may raise what says that it cannot serve there.

    Raises:
        AssertionError: a law fails; says which.
    """
    chooses = any(engine.components.cache.phase(step) is not Phase.ALL for step in range(engine.config.block_length))
    rows = prompts(engine.model, (9, 9, 9) if chooses else (13, 9, 11))
    told: list[Any] = []

    def noted(ask: Callable[[], Any]) -> Any:
        told.append(ask())
        return told[-1]

    with _facts(noted):
        found = engine.generate(rows, observers=[_Standing()])
    _decided(found, rows, engine)
    again = engine.generate(rows)
    law(
        torch.equal(again.tokens, found.tokens),
        f"a second run differs from the first{_where(again.tokens, found.tokens)}",
    )
    for row, answer in zip(rows, found.answers, strict=True):
        if _rows_are_apart(engine):
            alone = engine.generate([row]).answers[0]
            law(alone == answer, f"a row alone decodes to {alone}, and in a batch to {answer}")
    permuted = engine.generate([rows[2], rows[0], rows[1]]).answers
    expected = [found.answers[2], found.answers[0], found.answers[1]]
    law(permuted == expected, f"permuted rows decode to {permuted}, not to {expected}")
    if on_meta is not None:
        _no_device_read(on_meta, rows, told)
    if compiled:
        _compiled(engine, rows, found)
    return found


@attrs.define
class _Standing:
    """An observer that checks that a step changes what it commits, puts back or replaces, and nothing else."""

    before: Tensor | None = None

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        self.before = tokens.clone()

    def step(self, record: StepRecord) -> None:
        said = record.committed
        for more in (record.revoked, record.edited):
            said = said if more is None else said | more
        changed = (record.tokens != self.before) & ~said
        law(
            not bool(changed.any()),
            f"step {record.moment.step} changed {changed.nonzero().tolist()}, (row, column), which it did not commit",
        )
        self.before = record.tokens.clone()

    def end(self) -> None:
        """There is nothing to close."""


def _rows_are_apart(engine: Engine) -> bool:
    """Return whether no row has a say in what another computes."""
    steps = engine.planner(engine.components.layout(13, engine.model.spec)).forecast()
    if engine.components.can.learning is not None:  # drift is the largest over the rows, and so are the periods
        return False
    shared = any(step.scope.window in (Window.TRAIL, Window.OPEN, Window.TOKENS) for step in steps)
    adaptive = engine.components.unmasking.counts(engine.config.block_length, 1) is None
    return not shared and not (adaptive and any(step.plan.skips for step in steps))


def _where(found: Tensor, expected: Tensor) -> str:
    """Return where two canvases differ first, if they do."""
    if found.shape != expected.shape:
        return f": {tuple(found.shape)}, then {tuple(expected.shape)}"
    differing = (found != expected).nonzero().tolist()
    if not differing:
        return ""
    row, column = differing[0]
    return f" at row {row}, column {column}: {int(found[row, column])}, then {int(expected[row, column])}"


def _decided(found: Generation, rows: Sequence[Sequence[int]], engine: Engine) -> None:
    filled = engine.model.spec.attention is not None and engine.model.spec.attention.fills
    given = prepare(engine.model, [list(row) for row in rows], None, engine.config.gen_length, False, None)
    began = begin(engine.model, engine.components, given, 0, engine.step_function.has_forms, infill=False)
    wanted = sum(map(len, began.layout.masks)) if filled else engine.config.gen_length * len(rows)
    law(found.committed == wanted, f"{found.committed} positions of {wanted} are decided at the end")
    for number, (row, span) in enumerate(zip(rows, began.spans, strict=True)):
        stop = span.start - began.room
        kept = found.tokens[number, stop - len(row) : stop].tolist()
        law(kept == list(row), f"the prompt of row {number} became {kept}, from {list(row)}; what is given stays")


@contextmanager
def _facts(answer: Callable[[Callable[[], Any]], Any]) -> Iterator[None]:
    """Let `answer` say what planning is told when it asks the device; it gets the question."""
    asked = Canvas.facts

    def facts(canvas: Canvas, *arguments: Any, **named: Any) -> Any:
        return answer(lambda: asked(canvas, *arguments, **named))

    with patch.object(Canvas, "facts", facts):
        yield


def _no_device_read(on_meta: Callable[[], Engine], rows: Sequence[Sequence[int]], told: Sequence[Any]) -> None:
    """Repeat a run on the meta device, planning told what it was told on the CPU."""
    try:
        engine = on_meta()
    except (SkipTest, UnavailableError):
        return
    answers = iter(told)
    try:
        with _facts(lambda ask: next(answers)), KnownShapes():
            engine.generate([list(row) for row in rows])
    except Exception as error:
        raise AssertionError(
            f"a step reads the device: on the meta device it raised {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


def _compiled(engine: Engine, rows: list[list[int]], found: Generation) -> None:
    eager = engine.step_function
    torch._dynamo.reset()
    try:
        engine.step_function = StepFunction(compiled=True, backend="eager")
        tokens = engine.generate(rows).tokens
    except Exception as error:
        raise AssertionError(
            f"a step does not compile into one graph: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    finally:
        engine.step_function = eager
        torch._dynamo.reset()
    law(torch.equal(tokens, found.tokens), f"compiled steps give other tokens{_where(tokens, found.tokens)}")
