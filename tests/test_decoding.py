"""Sampling, unmasking, guidance, end-of-text, infilling: what decides tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from helpers import CASES, EOS, MASK
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples

from esdllm import (
    Candidates,
    Catalogue,
    Engine,
    Model,
    SampleView,
    StepRecord,
    UnavailableError,
    UnmaskingView,
    gumbel,
    hookimpl,
    load_model,
    uniform,
)
from esdllm_policies import gpus
from esdllm_policies.sampling import GumbelSampler
from esdllm_policies.schedules import TimeScheduleUnmasking
from esdllm_policies.unmasking import ThresholdUnmasking, TopKUnmasking

SHORT: dict[str, Any] = {"gen_length": 16, "block_length": 8, "early_stop": False}


@attrs.frozen
class Scripted:
    """Puts `token` everywhere, or end-of-text from column `eos_from` on."""

    eos_from: int = 0

    def sample(self, view: SampleView) -> Candidates:
        late = view.positions >= self.eos_from
        tokens = torch.where(late, EOS, 7)
        return Candidates(tokens, torch.full(tokens.shape, 0.9))


SCRIPTED = SimpleNamespace(esdllm_token_samplers=hookimpl(lambda: {"scripted": Scripted}))


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.load({"scripted": SCRIPTED})


@pytest.fixture(scope="module")
def models(catalogue: Catalogue) -> dict[str, Model]:
    return {name: load_model(CASES / name, device="cpu", catalogue=catalogue) for name in ("llada-0", "dream-0")}


@pytest.fixture
def build(models: dict[str, Model], catalogue: Catalogue) -> Any:
    def make(preset: str = "vanilla", model: str = "llada-0", **over: Any) -> Engine:
        return Engine.build(models[model], catalogue.configure(preset, settings={**SHORT, **over}), catalogue)

    return make


class Order:
    """Notes the columns that each step commits in each row."""

    def __init__(self) -> None:
        self.columns: list[list[list[int]]] = []

    def start(self, tokens: torch.Tensor, spec: Any) -> None: ...

    def step(self, record: StepRecord) -> None:
        self.columns.append([row.nonzero()[:, 0].tolist() for row in record.committed])

    def end(self) -> None: ...


# -------------------------------------------------------------------------------------------------------- noise


@given(seed=st.integers(0, 2**40), step=st.integers(0, 1000), position=st.integers(0, 10_000))
@examples(50)
def test_noise_depends_on_seed_step_and_position_alone(seed: int, step: int, position: int) -> None:
    one = uniform(torch.tensor([seed]), torch.tensor(step), torch.tensor([[position]]), 8)
    many = uniform(torch.tensor([3, seed]), torch.tensor(step), torch.tensor([[9, 4], [1, position]]), 8)
    assert torch.equal(one[0, 0], many[1, 1])
    assert ((one > 0) & (one < 1)).all()


def test_noise_reads_every_bit_of_the_seed_and_any_numbers_of_a_sequence() -> None:
    step, positions = torch.tensor(0), torch.tensor([[7]])
    low, high = (uniform(torch.tensor([seed]), step, positions, 9) for seed in (3, 3 + 2**32))
    assert not (low == high).any()
    index = torch.tensor([[[8, 0, 3]]])
    assert torch.equal(uniform(torch.tensor([3]), step, positions, index), low[..., [8, 0, 3]])


def test_noise_is_uniform_and_uncorrelated() -> None:
    seeds, positions = torch.arange(4), torch.arange(64).expand(4, -1)
    x = uniform(seeds, torch.tensor(3), positions, 1000)
    y = uniform(seeds, torch.tensor(4), positions, 1000)
    assert abs(float(x.mean()) - 0.5) < 0.002
    assert abs(float(x.var()) - 1 / 12) < 0.001
    for other in (
        y,
        x.roll(1, 0),
        x.roll(1, 1),
        x.roll(1, 2),
        uniform(seeds, torch.tensor(3), positions, 1000, stream=1),
    ):
        assert abs(float(torch.corrcoef(torch.stack([x.flatten(), other.flatten()]))[0, 1])) < 0.01


def test_gumbel_noise_samples_the_softmax() -> None:
    logits = torch.tensor([0.1, 0.2, 0.7]).log()
    noise = gumbel(torch.tensor([1]), torch.tensor(0), torch.arange(20_000)[None], 3)
    share = torch.bincount((logits + noise[0]).argmax(-1), minlength=3) / 20_000
    assert torch.allclose(share, torch.tensor([0.1, 0.2, 0.7]), atol=0.01)


# ------------------------------------------------------------------------------------------------------ samplers


def sample_view(logits: torch.Tensor, seed: int = 0) -> SampleView:
    positions = torch.arange(logits.shape[1]).expand(logits.shape[:2])
    return SampleView(logits, torch.full((logits.shape[0],), seed), torch.tensor(0), positions)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_confidence_is_the_probability_under_the_unperturbed_logits(temperature: float) -> None:
    logits = torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0)) * 3
    found = GumbelSampler(temperature=temperature, top_k=4).sample(sample_view(logits))
    expected = logits.softmax(-1).gather(-1, found.tokens.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(found.confidence, expected, atol=1e-6)


def test_a_kernel_for_gpus_is_refused_where_there_is_none_or_the_logits_are_too_wide(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    view = sample_view(torch.zeros(1, 2, 5))
    with pytest.raises(
        UnavailableError, match=r"fused = true needs a CUDA GPU with Triton.*here they are float32 on 'cpu'"
    ):
        GumbelSampler(fused=True).sample(view)
    monkeypatch.setattr(gpus, "_runs_triton", lambda device: True)
    with pytest.raises(
        UnavailableError, match="numbers of 32 bits at most; here they are float64 on 'cpu': leave it out"
    ):
        GumbelSampler(fused=True).sample(view._replace(raw=view.raw.double()))


def test_a_kernel_for_gpus_tells_the_shapes_of_what_it_gives() -> None:
    view = sample_view(torch.zeros(1, 2, 5))
    found = GumbelSampler(fused=True).sample(view._replace(raw=view.raw.to("meta")))
    assert [(x.shape, x.dtype) for x in found] == [((1, 2), torch.int64), ((1, 2), torch.float32)]


def test_greedy_takes_the_most_probable_token_and_a_high_temperature_others() -> None:
    logits = torch.randn(1, 200, 5, generator=torch.Generator().manual_seed(0))
    greedy = GumbelSampler().sample(sample_view(logits)).tokens
    assert torch.equal(greedy, logits.argmax(-1))
    assert (
        0.3 < float((GumbelSampler(temperature=2.0).sample(sample_view(logits)).tokens != greedy).float().mean()) < 0.9
    )


def test_top_k_and_top_p_leave_out_the_improbable() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1, 3000, 4)

    def tokens(**options: Any) -> set[int]:
        return set(GumbelSampler(temperature=1.0, **options).sample(sample_view(logits)).tokens.flatten().tolist())

    assert tokens() == {0, 1, 2, 3}
    assert tokens(top_k=2) == {0, 1}
    assert tokens(top_p=0.9) == {0, 1, 2}
    assert tokens(top_p=0.4) == {0}
    assert tokens(top_k=3, top_p=0.6) == {0, 1}


def test_a_seed_gives_a_row_the_same_answer_in_any_batch(build: Any) -> None:
    engine = build(sampler={"temperature": 1.0})
    rows = [[5, 6, 7], [1, 2, 3, 4, 5], [9]]
    batch = engine.generate(rows, seed=3).answers
    assert [engine.generate([row], seed=3).answers[0] for row in rows] == batch
    assert engine.generate(rows, seed=4).answers != batch


def test_one_seed_a_row_gives_several_answers_to_one_prompt(build: Any) -> None:
    engine = build(sampler={"temperature": 1.0})
    answers = engine.generate([[5, 6, 7]] * 3, seed=[1, 2, 1]).answers
    assert answers[0] == answers[2] != answers[1]


# ----------------------------------------------------------------------------------------------------- unmasking


def unmasking_view(confidence: list[float], eligible: list[int], quota: int) -> UnmaskingView:
    score = torch.tensor([confidence])
    none = torch.zeros_like(score)
    logits = torch.stack([score, 1 - score], -1).clamp(min=1e-9).log()
    places = torch.arange(len(confidence))[None]
    return UnmaskingView(
        raw=logits,
        tokens=none.long(),
        confidence=score,
        eligible=torch.tensor([eligible], dtype=torch.bool),
        positions=places,
        previous_tokens=none.long(),
        previous_confidence=none,
        quota=torch.tensor([quota]),
        step=torch.tensor(0),
        seeds=torch.tensor([0]),
        columns=places,
        undecided=torch.ones_like(places, dtype=torch.bool),
    )


def selected(policy: Any, *view: Any) -> list[int]:
    return policy.select(unmasking_view(*view))[0].nonzero()[:, 0].tolist()


def test_top_k_takes_the_most_confident_of_the_eligible_and_no_more_than_there_are() -> None:
    assert selected(TopKUnmasking(), [0.9, 0.5, 0.8], [0, 1, 1], 1) == [2]
    assert selected(TopKUnmasking(), [0.9, 0.5, 0.8], [0, 1, 1], 5) == [1, 2]
    assert selected(TopKUnmasking(), [0.9, 0.5, 0.8], [0, 0, 0], 5) == []


def test_of_equally_confident_positions_the_leftmost_is_taken() -> None:
    assert selected(TopKUnmasking(), [0.5, 0.8, 0.8], [1, 1, 1], 1) == [1]


def test_margin_and_entropy_order_by_certainty_and_random_by_the_seed() -> None:
    confidence, eligible = [0.55, 0.95, 0.7], [1, 1, 1]
    for order in ("margin", "entropy"):
        assert selected(TopKUnmasking(order=order), confidence, eligible, 1) == [1]
        assert selected(TopKUnmasking(order=order), confidence, eligible, 2) == [1, 2]
    view = unmasking_view([0.5] * 40, [1] * 40, 20)
    first = TopKUnmasking(order="random").select(view)
    assert int(first.sum()) == 20
    assert torch.equal(first, TopKUnmasking(order="random").select(view))
    assert not torch.equal(first, TopKUnmasking(order="random").select(view._replace(seeds=torch.tensor([1]))))


def test_threshold_takes_all_above_it_and_always_the_best() -> None:
    assert selected(ThresholdUnmasking(threshold=0.6), [0.9, 0.5, 0.8], [1, 1, 1], 0) == [0, 2]
    assert selected(ThresholdUnmasking(threshold=0.95), [0.9, 0.5, 0.8], [1, 1, 1], 0) == [0]
    assert selected(ThresholdUnmasking(threshold=0.6), [0.9, 0.5, 0.8], [0, 0, 0], 0) == []


@given(masked=st.integers(1, 300), rate=st.integers(1, 9), per_block=st.integers(1, 40), blocks=st.integers(1, 5))
def test_every_schedule_suffices_for_the_masks(masked: int, rate: int, per_block: int, blocks: int) -> None:
    for policy in (TopKUnmasking(steps=per_block * blocks), TimeScheduleUnmasking(steps=per_block * blocks)):
        assert sum(policy.counts(masked, blocks)) == masked
    counts = TopKUnmasking(tokens_per_step=rate).counts(masked, blocks)
    assert set(counts) == {rate}
    assert sum(counts) - rate < masked <= sum(counts)


def test_llada_s_schedule_gives_the_first_steps_one_more() -> None:
    assert TopKUnmasking(steps=8).counts(10, 2) == (3, 3, 2, 2)


# ------------------------------------------------------------------------------------- guidance and end of text


def test_guidance_of_strength_0_is_none_and_another_changes_tokens(build: Any) -> None:
    prompt = torch.arange(12)[None]
    plain = build("dual-cache").generate(prompt).tokens
    assert torch.equal(build("dual-cache", cfg_scale=1e-9).generate(prompt).tokens, plain)
    assert not torch.equal(build("dual-cache", cfg_scale=4.0).generate(prompt).tokens, plain)


@pytest.mark.parametrize("preset", ["vanilla", "dual-cache", "es-dllm"])
@pytest.mark.parametrize("model", ["llada-0", "dream-0"])
def test_delayed_end_of_text_comes_from_left_to_right_and_at_once_without_delay(
    build: Any, preset: str, model: str
) -> None:
    prompt, delayed, free = torch.arange(8)[None], Order(), Order()
    build(preset, model, sampler="scripted", delay_eos=True, unmasking={"tokens_per_step": 4}).generate(
        prompt, observers=[delayed]
    )
    build(preset, model, sampler="scripted", delay_eos=False).generate(prompt, observers=[free])
    assert delayed.columns[0] == [[8]]  # the block's first position; the next may follow only when it stands
    assert len(free.columns) == 16


@pytest.mark.parametrize("preset", ["vanilla", "es-dllm", "es-dllm-parallel"])
def test_a_finished_batch_stops_and_the_rest_is_end_of_text(build: Any, preset: str) -> None:
    over = {"sampler": {"name": "scripted", "eos_from": 11}, "gen_length": 64, "early_stop": True, "check_every": 4}
    result = build(preset, **over).generate(torch.arange(8)[None])
    assert result.answers == [[7, 7, 7]]
    assert result.forwards < 20
    assert result.tokens[0, 11:].tolist() == [EOS] * 61


def test_early_stop_changes_no_answer(build: Any) -> None:
    over = {"sampler": {"name": "scripted", "eos_from": 11}, "gen_length": 64}
    rows = [[1, 2, 3], [1, 2, 3, 4, 5, 6, 7]]
    stopped = build(early_stop=True, **over).generate(rows)
    full = build(early_stop=False, **over).generate(rows)
    assert stopped.answers == full.answers
    assert stopped.forwards < full.forwards == 64


# ------------------------------------------------------------------------------------------------------ infilling


@pytest.mark.parametrize("model", ["llada-0", "dream-0"])
@pytest.mark.parametrize("preset", ["vanilla", "prefix-cache", "dual-cache", "es-dllm", "es-dllm-parallel"])
@given(data=st.data())
@examples(8)
def test_infilling_decides_the_masks_and_nothing_else(
    models: dict[str, Model], catalogue: Catalogue, preset: str, model: str, data: st.DataObject
) -> None:
    length = data.draw(st.integers(4, 30))
    rows = [[data.draw(st.sampled_from([MASK, 3, 9])) for _ in range(length)] for _ in range(2)]
    for row in rows:
        row[0], row[-1] = 5, MASK
    engine = Engine.build(models[model], catalogue.configure(preset, settings=SHORT), catalogue)
    result = engine.generate(rows, infill=True)
    given_, made = torch.tensor(rows), result.tokens
    assert torch.equal(made[given_ != MASK], given_[given_ != MASK])
    assert result.committed == int((given_ == MASK).sum())


def test_an_infilled_row_is_its_answer_whole_and_without_padding(build: Any) -> None:
    rows = [[5, 6, MASK, EOS, 7, MASK], [3, MASK]]
    result = build("es-dllm").generate(rows, infill=True)
    assert [len(answer) for answer in result.answers] == [6, 2]
    for row, answer in zip(rows, result.answers, strict=True):
        assert all(made == given for made, given in zip(answer, row, strict=True) if given != MASK)
        assert MASK not in answer


def test_infilling_masks_at_the_end_is_generating(build: Any) -> None:
    engine, prompt = build("es-dllm"), list(range(8))
    assert torch.equal(engine.generate([prompt + [MASK] * 16], infill=True).tokens, engine.generate([prompt]).tokens)
