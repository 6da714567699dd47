"""The laws of measuring some steps of each plan instead of all."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esdllm import Catalogue
from esdllm.errors import InputError
from esdllm.measure.benchmarking import Setting, bench, contenders_named, geometry
from esdllm.measure.benchmarking.runners import EngineRunner, runner
from esdllm.measure.benchmarking.sampling import sample
from esdllm.plan import Layout
from esdllm.runtime.components import Components

TINY = "tiny,layers=2,hidden=64,vocab=256"
LENGTHS = ["gen_length=24", "block_length=8"]
PERIODS = "refresh.block_refresh=4 refresh.prompt_refresh=16"
PRESETS = ["vanilla", "dual-cache", f"es-dllm {PERIODS}", f"bare {PERIODS}"]


def setting(catalogue: Catalogue, number: int | None) -> Setting:
    made = geometry(TINY, catalogue)
    return Setting(TINY, made, prompt_length=9, batch=2, device="cpu", threads=1, sample=number)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS[:3])
@given(number=st.integers(1, 30))
def test_a_sample_holds_the_first_step_of_every_plan_and_stands_for_all_of_them(preset: str, number: int) -> None:
    catalogue = Catalogue.load()
    config = contenders_named([preset], catalogue, LENGTHS)[0].config
    steps = Components.resolve(config, catalogue).planner(Layout.of(9, 24, 0), n_layers=4).forecast()
    found = sample(steps, number)
    weights = Counter[object]()
    for step, weight in found:
        weights[step.plan] += weight
    total = Counter(step.plan for step in steps)
    assert weights == pytest.approx(total)
    made = Counter(step.plan for step, _ in found)
    assert all(made[plan] == min(number, count) for plan, count in total.items())
    assert [step for step, _ in found] == sorted((step for step, _ in found), key=lambda step: step.moment.step)
    first = {plan: next(step for step in steps if step.plan == plan) for plan in total}
    assert all(any(step == head for step, _ in found) for head in first.values())


def test_without_a_number_every_step_stands_for_itself(catalogue: Catalogue) -> None:
    steps = list(range(5))
    assert sample(steps, None) == [(step, 1.0) for step in steps]  # type: ignore[arg-type]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_sampled_run_counts_the_work_of_the_whole(preset: str, catalogue: Catalogue) -> None:
    named = contenders_named([preset], catalogue, LENGTHS)
    whole, part = (
        bench(setting(catalogue, n), named, rounds=1, peak=lambda m: None, catalogue=catalogue).first for n in (None, 2)
    )
    assert (part.forwards, part.committed, part.flops) == (whole.forwards, whole.committed, whole.flops)
    assert {kind.name: kind.steps for kind in part.kinds} == {kind.name: kind.steps for kind in whole.kinds}
    for a, b in zip(part.kinds, whole.kinds, strict=True):
        assert (a.flops, a.bytes) == pytest.approx((b.flops, b.bytes))
    assert whole.answer_tokens is not None
    assert part.answer_tokens is None


@pytest.mark.parametrize("preset", PRESETS)
def test_a_sampled_run_makes_the_steps_of_the_sample_and_lasts_as_long_as_all_would(
    preset: str, catalogue: Catalogue
) -> None:
    given, named = setting(catalogue, 2), contenders_named([preset], catalogue, LENGTHS)[0]
    one = runner(named, given, given.load(catalogue), catalogue)
    made = one.run()
    assert sum(step.weight for step in made.steps) == 24
    assert len(made.steps) < 24
    steps = sum(step.weight * step.seconds for step in made.steps)
    assert steps < made.seconds
    if isinstance(one, EngineRunner):
        assert [step.seconds for step in one.engine.clock.steps()] == [step.seconds for step in made.steps]


@pytest.mark.parametrize(
    "words", [["es-dllm-parallel"], ["es-dllm", "early_stop=true"], ["es-dllm", "refresh.block_refresh=5"]]
)
def test_a_plan_that_depends_on_what_is_decoded_is_refused(words: list[str], catalogue: Catalogue) -> None:
    named = contenders_named(words, catalogue, ["gen_length=24", "block_length=8"])
    with pytest.raises(InputError, match="--sample plans all steps before the first one"):
        bench(setting(catalogue, 1), named, rounds=1, peak=lambda m: None, catalogue=catalogue)
