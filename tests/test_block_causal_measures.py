"""What is told and measured of block-causal models: plans before a run, their cost, traces, bounds, memory."""

from __future__ import annotations

import attrs
import pytest
import torch
from helpers import offers
from test_block_causal import CATALOGUE, FORMS, PROMPTS, engine_of, model_of
from test_block_causal_limits import Old

from esdllm import BlockCausal, Catalogue, InputError
from esdllm.cli.explain import _attention as told_attention
from esdllm.machine import Machine
from esdllm.measure.analysis import analyze
from esdllm.measure.benchmarking.bare import BareWeights
from esdllm.measure.cost import Costing
from esdllm.measure.doctor import attention_backends, fits
from esdllm.measure.forecast import Forecast
from esdllm.measure.tracing import trace
from esdllm.serving.sizing import Sizing
from esdllm.testing.bounds.certified import Certified
from esdllm.use.likelihood import Likelihood, Pair


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("preset", ["vanilla", "dual-cache", "es-dllm"])
def test_a_forecast_tells_the_steps_and_the_share_that_a_run_takes(form: str, preset: str) -> None:
    engine = engine_of(model_of(*FORMS[form]), preset)
    for prompt in PROMPTS:
        made = engine.generate([prompt])
        told = Forecast.of(engine.components, engine.model.spec, len(prompt), 1)
        assert (told.forwards, told.canvas) == (made.forwards, made.tokens.shape[1])
        assert told.layer_share == pytest.approx(made.layer_share)
        if preset == "vanilla":
            assert told.layer_share == pytest.approx(1.0, abs=1e-9) or engine.model.spec.attention.size == 1


def test_a_forecast_names_what_the_steps_of_a_block_causal_model_compute() -> None:
    engine = engine_of(model_of(BlockCausal(4, "prompt-end")), "dual-cache", gen_length=8)
    lines = [
        (one.steps, one.window, one.plan.window)
        for one in Forecast.of(engine.components, engine.model.spec, 9, 1).plans
    ]
    # the prompt's 12 columns and the first block in one pass; then 4 positions, and once 8: a block is final, the next begins
    merged = {(steps, positions) for steps, window, positions in lines if window == "keys + block"}
    assert merged == {(1, 16), (1, 8)}
    assert sum(steps for steps, window, positions in lines if (window, positions) == ("block", 4)) == 6
    led = engine_of(model_of(BlockCausal(4, leads=True), 1), "dual-cache", gen_length=8)
    windows = [
        (one.window, one.steps, one.plan.window) for one in Forecast.of(led.components, led.model.spec, 8, 1).plans
    ]
    assert ("keys, next token", 1, 8) in windows
    assert ("keys, next token", 1, 4) in windows


def test_explain_says_what_attention_sees() -> None:
    assert told_attention(BlockCausal(32, "prompt-end", written=1, leads=True)) == (
        "block-causal: blocks of 32 from the prompt's end on see those before, its keys written causally; the last row written "
        "decides a block's first token"
    )
    assert told_attention(BlockCausal(4)) == "block-causal: blocks of 4 from the first token on see those before"


def test_a_block_costs_what_it_reads_and_no_more() -> None:
    """A step in the second of two blocks reads half as many keys again as one in the first."""
    model = model_of(BlockCausal(8))
    engine = engine_of(model, "dual-cache", gen_length=16)
    costing = Costing.of(engine.components, model.spec, 1, 32, 4)
    steps = [step.plan for step in engine.planner(engine.components.layout(16, model.spec)).forecast()]
    inner = [plan for plan in steps if plan.written is None and plan.window == 8]
    cost = {plan.visible: costing.step(plan).attention for plan in inner}
    assert cost[32] * 3 == cost[24] * 4
    assert costing.step(inner[0]).attention < costing.step(inner[0]._replace(visible=None)).attention


@pytest.mark.parametrize("form", FORMS)
def test_a_trace_shows_every_commit_once(form: str) -> None:
    engine = engine_of(model_of(*FORMS[form]), "es-dllm")
    found = trace(engine, PROMPTS[0], timed=False)
    assert len(found.steps) == engine.generate([PROMPTS[0]]).forwards
    assert sum(len(step.committed) for step in found.steps) == engine.generate([PROMPTS[0]]).committed


@pytest.mark.parametrize("form", FORMS)
def test_what_is_certified_of_a_block_is_held_against_the_pass_under_the_mask(form: str) -> None:
    model = model_of(*FORMS[form])
    exact = Certified(engine := engine_of(model, "dual-cache", attention="sdpa"))
    engine.generate(PROMPTS, observers=[exact])
    assert len(exact.commits) == engine.generate(PROMPTS).committed
    assert (
        max(commit.drift for commit in exact.commits) < 1e-4
    )  # nothing is skipped, so nothing is stale but the block's own
    assert all(commit.same and commit.greedy for commit in exact.commits)
    skipping = Certified(engine := engine_of(model, "es-dllm", attention="sdpa"))
    engine.generate(PROMPTS, observers=[skipping])
    assert all(commit.drift <= commit.bound + 1e-4 for commit in skipping.commits)


def test_the_memory_of_slots_counts_the_pass_over_a_prompt() -> None:
    model = model_of(BlockCausal(4))
    sizing = Sizing.of(engine_of(model, "dual-cache"), 200, Machine.here().devices[0], Machine.here().devices[0])
    assert max(window for window, _ in sizing._widest) >= 200


def test_doctor_tells_which_stores_hold_a_block_causal_model() -> None:
    engine = engine_of(model_of(BlockCausal(4)), "dual-cache")
    spec, cpu = engine.model.spec, torch.device("cpu")
    found = {one.store: one.problems for one in fits(CATALOGUE, engine.components, spec, 1, 64, cpu, torch.float32, 0)}
    assert not found["dense"]
    assert "reads those up to its block's end" in " ".join(found["sparse"])


def test_doctor_tells_which_backends_serve_a_block_causal_model() -> None:
    catalogue = Catalogue.load({"made-up": offers("esdllm_attention_backends", {"made-up": Old})})
    components = engine_of(model_of(BlockCausal(4)), "dual-cache").components
    spec, cpu = model_of(BlockCausal(4)).spec, torch.device("cpu")
    found = {one.name: one.problems for one in attention_backends(catalogue, components, spec, cpu, torch.float32)}
    assert not found["sdpa"]
    assert "block-causal" in found["made-up"][0]


def test_what_is_measured_over_whole_canvases_alone_refuses_a_block_causal_model() -> None:
    model = model_of(BlockCausal(4))
    engine = engine_of(model, "dual-cache")
    likelihood, pair = Likelihood(model.adapter, engine.components.attention), Pair((5, 9), (2, 40))
    for scored in (likelihood.bounds, likelihood.greedy):
        with pytest.raises(InputError, match=r"block-causal .* give tasks that generate"):
            scored([pair])
    with pytest.raises(InputError, match="block-causal"):
        analyze(engine, [PROMPTS[0]])
    with pytest.raises(InputError, match="leave out bare"):
        BareWeights.of(model.adapter)
    BareWeights.of(attrs.evolve(model.adapter, spec=attrs.evolve(model.spec, attention=None)))
