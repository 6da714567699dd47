"""The head: for which positions logits are computed, and that nothing else depends on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import MODELS, MODES, Watch, prompts

from esdllm import Catalogue, SampleView, UnmaskingView
from esdllm.plan import Facts, Layout, Step, StepPlan
from esdllm.planning.schedule import Planner
from esdllm.runtime.components import Components
from esdllm.runtime.samples import sample_view
from esdllm_policies import sampling
from esdllm_policies.sampling import GumbelSampler

CATALOGUE = Catalogue.load()
PARALLEL = ("dual-cache-parallel", "es-dllm-parallel")


def planner(preset: str, layout: Layout, **settings: Any) -> Planner:
    config = CATALOGUE.configure(preset, settings=settings)
    return Components.resolve(config, CATALOGUE).planner(layout, 8, early_stop=False)


def handed(plan: StepPlan) -> int:
    """Return what the head would take if it did not look at what is masked."""
    return plan.keep[-1] if plan.skips or plan.open else plan.block


# ------------------------------------------------------------------------------------------------------- planning


@given(
    st.lists(st.sets(st.integers(0, 60), max_size=40), min_size=1, max_size=3).filter(any),
    st.integers(1, 20),
    st.integers(1, 9),
    st.sampled_from(MODES),
)
def test_the_head_has_room_for_every_masked_position_and_less_than_a_quarter_more(
    rows: list[set[int]], block_length: int, rate: int, mode: str
) -> None:
    """Where a step commits what was planned, which is certain without skipping."""
    layout, unmasking = Layout(61, tuple(tuple(sorted(row)) for row in rows)), {"tokens_per_step": rate}
    settings = {"block_length": block_length, "unmasking": unmasking, "delay_eos": False}
    settings |= {"skip": {"keep": [[0, 1]]}} if mode == "es-dllm" else {}
    left = [set(row) for row in rows]
    for step in planner(mode, layout, **settings).forecast():
        inside = [sorted(row & set(range(*step.block))) for row in left]
        masked = max(map(len, inside))
        assert masked <= step.plan.decided <= step.plan.block
        assert step.plan.decided < masked + -(-step.plan.block // 4)
        for row, block, count in zip(left, inside, step.counts, strict=True):
            row.difference_update(block[:count])
    assert not any(left)


def test_a_block_has_at_most_four_lengths() -> None:
    steps = planner("dual-cache", Layout.of(9, 64, 0), block_length=64).forecast()
    assert [step.plan.decided for step in steps] == [64] * 16 + [48] * 16 + [32] * 16 + [16] * 16


def test_a_schedule_that_goes_on_when_all_is_decided_still_has_a_head() -> None:
    """Dream's, say, where there are more steps than masks."""
    steps = planner("vanilla", Layout.of(9, 4, 0), gen_length=4, unmasking={"name": "time-schedule", "steps": 12})
    assert {step.plan.decided for step in steps.forecast()} <= {1, 2, 3, 4}


def test_a_compiled_step_has_one_length() -> None:
    steps = planner("dual-cache", Layout.of(9, 64, 0), block_length=64, compile=True).forecast()
    assert {step.plan.decided for step in steps} == {64}


def test_survivors_are_no_more_than_were_handed_on() -> None:
    steps = planner("es-dllm", Layout.of(9, 64, 0), block_length=64).forecast()
    assert {step.plan.decided for step in steps if step.plan.skips} == {16}
    assert [step.plan.decided for step in steps if not step.plan.skips] == [64, 48, 32, 16]


@pytest.mark.parametrize("preset", PARALLEL)
def test_where_the_logits_decide_the_head_follows_what_the_device_says(preset: str) -> None:
    left, made = [30, 22, 9, 0], list[Step]()

    def read() -> Facts:
        return Facts(left[len(made) - 1], 8, 0, finished=False)

    settings = (
        {"block_length": 32, "refresh": {"block_refresh": 1}} if preset.startswith("es") else {"block_length": 32}
    )
    for step in planner(preset, Layout.of(9, 32, 0), **settings).walk(read):
        made.append(step)
    assert [step.plan.decided for step in made] == [32, 32, 24, 16]


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("dual-cache", {"unmasking": {"tokens_per_step": 4}, "delay_eos": True}),  # a step may commit fewer
        ("dual-cache", {"unmasking": "wino"}),  # what is decided is looked at again
        ("dual-cache", {"blocks": "own"}),  # every row has a block of its own
    ],
)
def test_what_is_not_known_takes_all_that_may_be_masked(preset: str, settings: dict[str, Any]) -> None:
    steps = planner(preset, Layout.of(9, 32, 0), block_length=16, **settings).forecast()
    inside = [step for step in steps if step.moment.step_in_block]
    assert inside
    assert all(step.plan.decided == handed(step.plan) for step in inside)


# -------------------------------------------------------------------------------------------------------- decoding


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("preset", "over"),
    [
        *((mode, {}) for mode in (*MODES, *PARALLEL)),
        ("es-dllm", {"skip": {"keep": [[0, 1], [0.5, 0.9]]}}),
        ("es-dllm", {"blocks": "pruned", "skip": {"keep": [[0, 1], [0.5, 0.9]]}}),
        ("dual-cache", {"cfg_scale": 1.0}),
        ("es-dllm", {"cfg_scale": 1.0, "skip": {"keep": [[0, 1], [0.5, 0.9]]}}),
        ("vanilla", {"unmasking": {"order": "margin", "tokens_per_step": 3}, "delay_eos": False}),
        ("dual-cache", {"sampler": {"temperature": 1.0}}),
        ("dual-cache", {"unmasking": "klass"}),
        ("dual-cache", {"unmasking": "credit"}),
        ("es-dllm", {"importance": "mix"}),
    ],
)
def test_tokens_are_those_with_logits_for_all_that_a_step_hands_on(
    name: str, preset: str, over: dict[str, Any], build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [prompts(1, length, seed=length)[0].tolist() for length in (12, 5)]
    watch = Watch()
    found = build(name, preset, **over).generate(rows, observers=[watch])
    monkeypatch.setattr(Planner, "_logits", lambda self, plan, *_: handed(plan))
    assert torch.equal(found.tokens, build(name, preset, **over).generate(rows).tokens)
    assert any(record.plan.decided < handed(record.plan) for record in watch.records)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("preset", ["vanilla", "dual-cache", "dual-cache-parallel"])
def test_every_masked_position_of_the_block_has_logits(name: str, preset: str, build: Any) -> None:
    class Holes(Watch):
        def step(self, record: Any) -> None:
            masked = self.tokens[-1] == self.mask
            shift, block = self.shift, record.block
            inside = slice(block.start + shift, block.stop + shift)
            assert record.computed[:, inside][masked[:, inside]].all()
            assert record.computed.sum(1).tolist() == [record.plan.decided] * len(masked)
            super().step(record)

        def start(self, tokens: torch.Tensor, spec: Any) -> None:
            self.mask, self.shift = spec.mask_id, spec.logit_shift
            super().start(tokens, spec)

    rows = [prompts(1, length, seed=length)[0].tolist() for length in (12, 5)]
    watch = Holes()
    build(name, preset, block_length=12).generate(rows, observers=[watch])
    assert {record.plan.decided for record in watch.records} == {12, 9, 6, 3}


# -------------------------------------------------------------------------------------------------------- choosing


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@given(seed=st.integers(0, 2**20), vocab=st.integers(1, 40), columns=st.integers(1, 45), rows=st.integers(1, 3))
def test_slices_of_the_vocabulary_give_what_the_whole_gives(
    temperature: float, dtype: torch.dtype, seed: int, vocab: int, columns: int, rows: int
) -> None:
    view = sample_view(seed, rows, 4, vocab)
    view = view._replace(raw=view.raw.to(dtype))
    sampler = GumbelSampler(temperature=temperature)
    whole = sampler.sample(view)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "logits_at_once", lambda device: columns * rows * 4)
        found = sampler.sample(view)
    assert torch.equal(found.tokens, whole.tokens)
    assert found.confidence.dtype == torch.float32
    torch.testing.assert_close(found.confidence, whole.confidence, rtol=1e-6, atol=0)
    expected = view.raw.double().softmax(-1).gather(-1, found.tokens.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found.confidence.double(), expected, rtol=1e-5, atol=1e-7)


def test_of_equal_logits_the_first_wins_whatever_the_dtype() -> None:
    """bfloat16 has many of them."""
    view = sample_view(vocab=5000, window=30)
    rounded = view.raw.bfloat16()
    assert torch.equal(GumbelSampler().sample(view._replace(raw=rounded)).tokens, rounded.float().argmax(-1))


def test_no_number_is_passed_on() -> None:
    """A model that yields NaN is found by it."""
    view = sample_view(vocab=9)
    view.raw[0, 1, 3] = torch.nan
    assert GumbelSampler().sample(view).confidence.isnan().nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("kind", [SampleView, UnmaskingView])
def test_a_view_shows_logits_in_float32_and_as_the_head_gave_them(kind: type[Any]) -> None:
    raw = torch.tensor([[[1.0, 2.0]]], dtype=torch.bfloat16)
    view = kind(raw, *[None] * (len(kind._fields) - 1))
    assert view.raw is raw
    assert view.logits.dtype == torch.float32
    assert torch.equal(view.logits, raw.float())
