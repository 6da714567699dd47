"""A step is free of a prompt's form: prompts of many lengths share canvases, recorded and compiled steps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from runs import SHALLOW, Build, Watch, prompts

from esdllm import Engine
from esdllm.runtime.run import StepFunction
from esdllm.testing.tape import Tape, record_steps

GEN = 16
LENGTHS = [1, 90, 33, 17, 64, 65, 2, 48, 40, 81, 16, 15]
SETTINGS: dict[str, Any] = {"gen_length": GEN, "block_length": 8}


def canvas_lengths(lengths: Sequence[int]) -> set[int]:
    """Return the lengths that canvases of such prompts are filled up to: the multiples of 32 above."""
    return {-(-(length + GEN) // 32) * 32 for length in lengths}


def chat(lengths: Sequence[int]) -> list[list[list[int]]]:
    """Return a prompt of each length, one at a time."""
    return [prompts(1, length, seed=length).tolist() for length in lengths]


def ragged(lengths: Sequence[int]) -> list[list[list[int]]]:
    """Return batches of three prompts each, of three lengths."""
    rows = [prompts(1, length, seed=length).tolist()[0] for length in lengths]
    return [[rows[i], rows[(i + 1) % len(rows)], rows[(i + 5) % len(rows)]] for i in range(len(rows))]


def decoded(engine: Engine, given: Sequence[list[list[int]]]) -> tuple[list[torch.Tensor], set[Any]]:
    """Return the tokens of each call, and the plans that came up in any."""
    watch = Watch()
    found = [engine.generate(one, observers=[watch]).tokens for one in given]
    return found, {record.plan for record in watch.records}


def same(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    assert [x.tolist() for x in found] == [x.tolist() for x in expected]


def recorded(engine: Engine) -> int:
    """Return how many graphs an engine holds."""
    assert engine.step_function.graphs is not None
    return sum(known.replay is not None for known in engine.step_function.graphs._known.values())


@pytest.mark.slow
@pytest.mark.parametrize("model", SHALLOW)
@pytest.mark.parametrize("form", [chat, ragged], ids=["chat", "ragged"])
@pytest.mark.parametrize(
    "lengths", [LENGTHS, pytest.param(random.Random(0).sample(range(1, 101), 100), marks=pytest.mark.full)]
)
def test_prompts_of_many_lengths_need_no_more_graphs_than_plans_times_canvas_lengths(
    model: str, form: Any, lengths: Sequence[int], build: Build
) -> None:
    engine, expected = build(model, "es-dllm", **SETTINGS), build(model, "es-dllm", **SETTINGS)
    given = form(lengths)
    tape = record_steps(engine)
    decoded(engine, given[lengths.index(max(lengths)) :][:1])  # the cache is as large as it will be
    found, plans = decoded(engine, given)
    same(found, [expected.generate(one).tokens for one in given])
    windows = {(plan, length) for plan in plans for length in canvas_lengths(lengths)}
    forms = 2  # padded, or as long as its canvas
    assert recorded(engine) <= len(tape.replays) <= forms * len(windows)
    assert sum(tape.replays) > 3 * len(tape.replays)


@pytest.mark.slow
def test_prompts_of_one_canvas_length_record_nothing_anew(build: Build) -> None:
    engine = build("llada-0", "es-dllm", **SETTINGS)
    tape = record_steps(engine)
    decoded(engine, chat([30]) * 2)
    recordings = len(tape.replays)
    decoded(engine, chat(range(18, 48)))
    assert len(tape.replays) == recordings


@pytest.mark.slow
def test_caches_of_all_forms_lie_in_the_memory_of_the_largest(build: Build) -> None:
    engine = build("llada-0", "es-dllm", **SETTINGS)
    record_steps(engine)
    engine.generate(prompts(2, 90))
    keys: Any = engine.cache
    largest = keys.keys[0].x.untyped_storage().data_ptr()
    for rows, length in ((1, 7), (2, 40), (1, 90), (4, 12)):
        engine.generate(prompts(rows, length))
        cache: Any = engine.cache
        assert cache.keys[0].x.untyped_storage().data_ptr() == largest
    engine.generate(prompts(3, 90))
    cache = engine.cache
    assert cache.keys[0].x.untyped_storage().data_ptr() != largest
    assert engine.step_function.graphs is not None
    held = {id(known.parts.cache) for known in engine.step_function.graphs._known.values()}
    assert held == {id(engine.cache)}  # what lay in the smaller is gone


@pytest.mark.slow
def test_prompts_of_one_canvas_length_compile_nothing_anew(build: Build) -> None:
    settings = {"gen_length": 8, "block_length": 8}
    engine, expected = (build("llada-shallow", "es-dllm", **settings) for _ in range(2))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    engine.step_function = StepFunction(compiled=True, backend="eager")
    given = [*chat([20, 11]), *ragged([20, 11])[:1]]
    found, plans = decoded(engine, given)
    same(found, [expected.generate(one).tokens for one in given])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2 * len(plans)  # of one row, and of three


def test_a_canvas_is_filled_up_only_where_steps_have_forms(build: Build) -> None:
    engine = build("llada-0", "es-dllm", **SETTINGS)
    engine.generate(prompts(1, 21))
    assert engine.cache_shape is not None
    assert engine.cache_shape.length == 21 + GEN
    record_steps(engine)
    assert engine.generate(prompts(1, 21)).tokens.shape == (1, 21 + GEN)
    assert engine.cache_shape is not None
    assert engine.cache_shape.length == 64
    exact = build("llada-0", "es-dllm", canvas_multiple=1, **SETTINGS)
    exact.step_function = StepFunction(compiled=False, graphs=Tape())
    found, plain = exact.generate(prompts(1, 21)), build("llada-0", "es-dllm", **SETTINGS).generate(prompts(1, 21))
    assert (found.forwards, found.layer_work) == (plain.forwards, plain.layer_work)
    assert exact.cache_shape is not None
    assert exact.cache_shape.length == 21 + GEN
