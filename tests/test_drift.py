"""Drift measured at refreshes, and the policy that steers by it; partial refreshes of the prompt; delayed caching."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import MASK
from hypothesis import given
from hypothesis import strategies as st
from runs import MODELS, Around, Build, Watch, prompts

from esdllm import Catalogue, Drift, Model, Moment, Scope, Window
from esdllm.plan import Block, Facts, Layout, Step
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.components import Components
from esdllm.runtime.drift import measure
from esdllm.runtime.needs import CanvasNeeds
from esdllm.runtime.parts import Alive, ForwardPass, StepInputs
from esdllm_policies.refreshing import DriftRefresh

CATALOGUE = Catalogue.load()


def walk(drift: Callable[[int], float], steps: int = 256, tolerance: float = 0.1) -> list[Step]:
    """Return the steps of one block whose caches drift as `drift` says, from the steps since a refresh."""
    settings = {
        "refresh": {"name": "drift", "tolerance": tolerance},
        "gen_length": steps,
        "block_length": steps,
        "early_stop": False,
    }
    components = Components.resolve(CATALOGUE.configure("es-dllm", settings=settings), CATALOGUE)
    planner = components.planner(Layout.of(4, steps, 0), 8)
    found: list[Step] = []

    def read() -> Facts:
        moment = found[-1].moment
        stale = drift(moment.since_refresh or 1)
        return Facts(1, 1, 4, False, 1, Drift(stale, stale if found[-1].scope.window is Window.PREFIX else None))

    for step in planner.walk(read):
        found.append(step)  # noqa: PERF402 - read() looks at the last one
    return found


def refreshes(steps: list[Step]) -> list[int]:
    return [number for number, step in enumerate(steps) if step.scope.refresh]


@given(st.floats(0.001, 0.05), st.floats(0.02, 1.0))
def test_drift_that_grows_evenly_settles_at_the_tolerance(rate: float, tolerance: float) -> None:
    """In the end a refresh finds the tolerance, within what rounding a period to whole steps does."""
    steps = walk(lambda since: rate * since, tolerance=tolerance)
    blocks = [step.moment.since_refresh or 0 for step in steps if step.scope == Scope(Window.BLOCK, True)]
    wanted = max(1.0, tolerance / rate)
    if len(blocks) > 6:
        assert wanted <= blocks[-1] <= wanted + 1


def test_caches_that_stand_still_are_refreshed_ever_more_rarely() -> None:
    numbers = refreshes(walk(lambda since: 0.0, steps=512))
    gaps = [b - a for a, b in zip(numbers, numbers[1:], strict=False)]
    assert gaps[0] == 16
    assert max(gaps[-2:]) >= 128
    assert len(numbers) <= 12


def test_caches_that_always_drift_too_far_are_refreshed_at_every_step_in_the_end() -> None:
    numbers = refreshes(walk(lambda since: 9.0))
    assert numbers[-32:] == list(range(224, 256))


def test_only_refreshes_ask_the_device() -> None:
    asked: list[int] = []
    settings = {"refresh": "drift", "gen_length": 64, "block_length": 64, "early_stop": False}
    components = Components.resolve(CATALOGUE.configure("es-dllm", settings=settings), CATALOGUE)
    found: list[Step] = []

    def read() -> Facts:
        asked.append(len(found) - 1)
        return Facts(1, 1, 4, False, 1, Drift(0.1, 0.1))

    for step in components.planner(Layout.of(4, 64, 0), 8).walk(read):
        found.append(step)  # noqa: PERF402 - read() looks at the last one
    assert asked == [number for number in refreshes(found)[1:] if number < 63]


def test_what_is_learned_of_the_block_and_of_the_prompt_are_two_periods() -> None:
    policy = DriftRefresh(tolerance=0.1)
    at = Moment(20, 4, 1, None, since_refresh=10, since_prompt=20, learned=(16.0, 64.0))
    assert policy.learn(at, Drift(0.1, None)) == (10.0, 64.0)
    assert policy.learn(at, Drift(0.2, None)) == (8.0, 64.0)
    assert policy.learn(at, Drift(0.08, 0.4)) == (12.5, 32.0)
    assert policy.learn(at, Drift(0.001, 0.04)) == (32.0, 50.0)
    assert policy.learn(at._replace(step_in_block=0), Drift(0.2, 0.05)) == (16.0, 40.0)
    assert policy.scope(at._replace(since_refresh=15)).refresh is False
    assert policy.scope(at._replace(since_refresh=16)) == Scope(Window.BLOCK, True)
    assert policy.scope(at._replace(since_prompt=64)) == Scope(Window.PREFIX, True)


@pytest.mark.parametrize("guided", [0.0, 1.5])
@pytest.mark.parametrize("name", MODELS)
def test_the_measured_drift_is_that_between_what_was_held_and_what_is_computed(
    name: str, guided: float, build: Build
) -> None:
    """Recomputed by hand from the values that the cache held just before a refresh and just after it, by row."""
    engine = build(name, "es-dllm", refresh="drift", block_length=24, cfg_scale=guided)
    found: list[torch.Tensor] = []
    step_function, layers = engine.step_function, engine.model.spec.n_layers

    def values(parts: Any, canvas: Any) -> torch.Tensor:
        every = canvas.rows(canvas.columns.expand(canvas.tokens.shape))
        return torch.stack([parts.cache.recall(layer, "value", every) for layer in range(layers)]).double()

    def watched(parts: Any, plan: Any, canvas: Any, inputs: Any) -> None:
        before = values(parts, canvas)
        step_function(parts, plan, canvas, inputs)
        if plan.measured:
            after = values(parts, canvas)
            change = (after - before).abs().mean(-1) / (before.square().mean(-1).sqrt() + 1e-6)
            change = change.unflatten(1, (canvas.branches, 3)).mean((0, 1))  # (B, L)
            block, prompt = change[:, inputs.block[0]].mean(1), change[:, : int(inputs.block[0, 0])].mean(1)
            torch.testing.assert_close(canvas.drift[:, 0].double(), block, rtol=1e-4, atol=0)
            facts = canvas.facts(Block(0, 1), torch.tensor([0])).drift
            assert facts.block == pytest.approx(block.amax().item(), rel=1e-4)
            if plan.window > plan.block:
                torch.testing.assert_close(canvas.drift[:, 1].double(), prompt, rtol=1e-4, atol=0)
                assert facts.prompt == pytest.approx(prompt.amax().item(), rel=1e-4)
            else:
                assert (canvas.drift[:, 1] < 0).all()
                assert facts.prompt is None
            found.append(block)

    engine.step_function = Around(watched)
    engine.generate(prompts(3))
    assert found
    assert all((block > 0).all() and len(block.unique()) == 3 for block in found)


def test_a_row_with_nothing_left_of_its_block_says_so_and_the_others_count() -> None:
    """Row 1 is padded up to its block: what is left of it is none of its own."""
    tokens = torch.full((2, 8), MASK)
    tokens[0, :4] = 1
    present = torch.ones(2, 8, dtype=torch.bool)
    present[1, :4] = False
    spec: Any = SimpleNamespace(mask_id=MASK, logit_shift=0, n_layers=2)
    canvas = Canvas.of(
        tokens, present, torch.zeros(2), spec, 1, torch.device("cpu"), torch.float32, CanvasNeeds(measures=True)
    )
    every = canvas.columns.expand(2, 8)
    parts: Any = SimpleNamespace(
        model=SimpleNamespace(spec=spec), cache=SimpleNamespace(recall=lambda *a: held), offset=None
    )
    plan: Any = SimpleNamespace(measured=True, from_layer=0)
    over = ForwardPass(parts, plan, canvas, StepInputs(every, every[:, 4:], every[0, 4:], *torch.ones(5, 2).long()))
    held = torch.ones(2, 8, 4)
    for layer in range(2):
        measure(over, layer, Alive(held, every, every, None), torch.full((2, 8, 2, 2), 3.0))
    assert canvas.drift is not None
    assert canvas.drift.tolist() == [[pytest.approx(2), pytest.approx(2)], [pytest.approx(2), -2]]
    assert canvas.facts(Block(4, 8), torch.tensor([0])).drift == (pytest.approx(2), pytest.approx(2))


def test_a_policy_that_does_not_learn_measures_nothing(build: Build) -> None:
    watch = Watch()
    build("llada-0", "es-dllm").generate(prompts(), observers=[watch])
    assert not any(record.plan.measured for record in watch.records)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_every_mask_is_decided_with_drift_partial_and_delayed_refreshes(name: str, build: Build) -> None:
    for preset in ("dual-cache", "es-dllm", "es-dllm-parallel"):
        for refresh in ("drift", {"name": "partial", "prompt_refresh": 8, "block_refresh": 4}, "delayed"):
            assert build(name, preset, refresh=refresh).generate(prompts(2)).committed == 48


def test_a_partial_refresh_hands_on_the_schedule_s_share_of_the_prompt(build: Build) -> None:
    watch = Watch()
    refresh = {"name": "partial", "prompt_refresh": 4, "block_refresh": 2, "full": 3}
    build("llada-0", "es-dllm", refresh=refresh).generate(prompts(), observers=[watch])
    prefix = [record for record in watch.records if record.moment.step % 4 == 0]
    assert [record.plan.skips for record in prefix] == [False, True, True, False, True, True]
    assert prefix[1].plan.window == 20
    assert prefix[1].plan.keep[-1] == 5


def test_partial_with_every_refresh_full_is_periodic(build: Build) -> None:
    periods = {"prompt_refresh": 8, "block_refresh": 4}
    partial = build("llada-0", "es-dllm", refresh={"name": "partial", "full": 1, **periods}).generate(prompts(2))
    assert torch.equal(partial.tokens, build("llada-0", "es-dllm", refresh=periods).generate(prompts(2)).tokens)


@pytest.mark.parametrize("name", MODELS)
def test_delayed_caching_that_refreshes_at_every_step_is_vanilla(name: str, build: Build) -> None:
    delayed = build(name, "dual-cache", refresh={"name": "delayed", "every": 1}).generate(prompts(2))
    assert torch.equal(delayed.tokens, build(name, "vanilla").generate(prompts(2)).tokens)


def test_delayed_caching_computes_what_is_undecided_and_what_was_just_decided(build: Build) -> None:
    """And a decided position's keys and values stay what they were a step after."""
    engine = build("llada-0", "dual-cache", refresh={"name": "delayed", "every": 99})
    watch, step_function = Watch(), engine.step_function
    computed: list[torch.Tensor] = []

    def watched(parts: Any, plan: Any, canvas: Any, inputs: Any) -> None:
        if plan.open:
            wanted = (canvas.undecided | canvas.committed)[0].nonzero()[:, 0]
            computed.append(canvas.open(plan.window)[0])
            assert torch.equal(computed[-1], wanted)
        step_function(parts, plan, canvas, inputs)

    engine.step_function = Around(watched)
    engine.generate(prompts(), observers=[watch])
    assert [record.plan.window for record in watch.records] == [36, *range(24, 1, -1)]
    assert len(computed) == 23


def test_delayed_caching_of_one_token_a_step_reads_nothing_from_the_device(
    shape_only: dict[str, Model], build: Build
) -> None:
    assert build(shape_only["llada-0"], "dual-cache", refresh="delayed").generate(prompts(2)).forwards == 24


@pytest.mark.parametrize("refresh", ["delayed", {"name": "partial", "prompt_refresh": 8, "block_refresh": 4}], ids=str)
def test_a_row_of_a_batch_is_the_row_alone(refresh: Any, build: Build) -> None:
    engine = build("dream-0", "dual-cache", refresh=refresh)
    rows = [prompts(1, length, seed=length)[0].tolist() for length in (12, 5, 9)]
    batch = engine.generate(rows)
    for number, row in enumerate(rows):
        assert engine.generate([row]).answers[0] == batch.answers[number]
