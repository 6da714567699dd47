"""Rules that go by all confidences, by neighbours and by runs, against the same written position by position."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import Build, prompts

from esdllm import Catalogue, ComponentConfig, ConfigError, UnmaskingView
from esdllm.testing import check_unmasking_policy
from esdllm.testing.conformance.rules.steps import given_view
from esdllm_policies.budgets import CaiUnmasking
from esdllm_policies.neighbours import HierarchicalUnmasking, LocalLeapUnmasking
from esdllm_policies.profile import FrechetProfileUnmasking
from esdllm_policies.unmasking import TopKUnmasking

SIXTEENTHS = st.lists(st.integers(0, 16), min_size=12, max_size=12)
MASKS = st.lists(st.sampled_from("mdh"), min_size=12, max_size=12)
"""of each position: a mask with logits, one without, or decided"""


def shown(sixteenths: list[int], masks: list[str], padding: int = 0) -> UnmaskingView:
    """Return a row's view of confidences that float32 holds exactly, with the positions alone that have logits."""
    at = [place for place, kind in enumerate(masks) if kind != "h"]
    columns = torch.tensor([at], dtype=torch.int64) + padding
    undecided = torch.zeros(1, 12 + padding, dtype=torch.bool)
    undecided[0, padding:] = torch.tensor([kind != "d" for kind in masks])
    eligible = torch.tensor([[masks[place] == "m" for place in at]])
    return given_view(torch.zeros(1, len(at), 4), eligible, undecided)._replace(
        confidence=torch.tensor([[sixteenths[place] / 16 for place in at]]),
        positions=columns - padding,
        columns=columns,
        block=torch.arange(12).unsqueeze(0) + padding,
    )


def places(view: UnmaskingView, policy: Any) -> set[int]:
    """Return the places on the canvas that a policy selects."""
    return set(view.positions[0][policy.select(view)[0]].tolist())


def having_one(masks: list[str]) -> list[str]:
    return ["m", *masks[1:]] if "m" not in masks else masks


@given(SIXTEENTHS, MASKS, st.sampled_from([-0.5, 0.0, 0.03125, 0.25, 1.0]))
def test_the_profile_is_the_number_of_sizes_whose_bound_exceeds_the_margin(
    sixteenths: list[int], masks: list[str], margin: float
) -> None:
    masks = having_one(masks)
    ranked = sorted((-sixteenths[at], at) for at, kind in enumerate(masks) if kind == "m")
    c = [Fraction(-minus, 16) for minus, _ in ranked]
    passing = sum(sum(c[:n]) - (n - 1) - (1 - c[n - 1]) > Fraction(margin) for n in range(2, len(c) + 1))
    expected = {at for _, at in ranked[: passing + 1]}
    assert places(shown(sixteenths, masks), FrechetProfileUnmasking(margin)) == expected


@given(SIXTEENTHS, MASKS, st.sampled_from([0, 1, 2, 5, 40]), st.sampled_from([(14, 12), (12, 12), (15, 0), (16, 3)]))
def test_what_is_near_an_anchor_on_the_canvas_needs_the_relaxed_threshold_alone(
    sixteenths: list[int], masks: list[str], radius: int, thresholds: tuple[int, int]
) -> None:
    """Positions without logits lie between; neighbours in the tensor need not be neighbours in the text."""
    masks, (high, low) = having_one(masks), thresholds
    eligible = [at for at, kind in enumerate(masks) if kind == "m"]
    anchors = [at for at in eligible if sixteenths[at] >= high]
    expected = {at for at in eligible if sixteenths[at] >= low and any(abs(at - a) <= radius for a in anchors)}
    best = max(eligible, key=lambda at: (sixteenths[at], -at))
    for padding in (0, 3):
        found = places(shown(sixteenths, masks, padding), LocalLeapUnmasking(high / 16, low / 16, radius))
        assert found == (expected or {best})


@given(SIXTEENTHS, MASKS, st.sampled_from([(16, 6), (12, 6), (12, 0), (16, 16), (3, 8)]))
def test_the_best_of_each_run_of_masks_is_taken_and_all_that_is_sure(
    sixteenths: list[int], masks: list[str], thresholds: tuple[int, int]
) -> None:
    """A mask without logits is part of its run, and neither taken nor the best."""
    masks, (high, low) = having_one(masks), thresholds
    runs, eligible = "".join(masks).replace("h", "m"), {at for at, kind in enumerate(masks) if kind == "m"}
    expected = {max(eligible, key=lambda at: (sixteenths[at], -at))} | {at for at in eligible if sixteenths[at] > high}
    for at in eligible:
        begin, end = runs.rfind("d", 0, at) + 1, runs.find("d", at)
        run = eligible & set(range(begin, len(runs) if end < 0 else end))
        if sixteenths[at] == max(sixteenths[other] for other in run) and sixteenths[at] > low:
            expected.add(at)
    for padding in (0, 3):
        policy = HierarchicalUnmasking(high / 16, low / 16)
        assert places(shown(sixteenths, masks, padding), policy) == expected


@pytest.mark.parametrize("name", ["frechet-profile", "local-leap", "hierarchical", "cai"])
def test_each_holds_to_the_contract(name: str, catalogue: Catalogue) -> None:
    check_unmasking_policy(catalogue.build("unmasking", ComponentConfig(name, {})))


def cai_view(rows: int = 2, length: int = 64, **over: Any) -> UnmaskingView:
    """Return a first step's view of rows of masks, all of one confidence: 0.3."""
    columns, nothing = torch.arange(length).expand(rows, -1), torch.zeros(rows, dtype=torch.int64)
    found = shown([0] * 12, ["m"] * 12)._replace(
        raw=torch.zeros(rows, length, 4),
        tokens=torch.zeros_like(columns),
        confidence=torch.full((rows, length), 0.3),
        eligible=torch.ones_like(columns, dtype=torch.bool),
        undecided=torch.ones_like(columns, dtype=torch.bool),
        columns=columns,
        positions=columns,
        step_in_block=nothing,
        block=columns,
        block_number=nothing,
        block_length=torch.full_like(nothing, length),
        memory=torch.zeros(rows, length, CaiUnmasking().memory),
    )
    return found._replace(**over)


def decoded(policy: CaiUnmasking, steps: int, confidence: torch.Tensor, view: UnmaskingView) -> list[list[set[int]]]:
    """Return what each row commits at each step, of confidences that stay (B, N)."""
    found = []
    for step in range(steps):
        view = view._replace(
            confidence=confidence, eligible=view.undecided, step_in_block=torch.full_like(view.step_in_block, step)
        )
        view = view._replace(memory=policy.remember(view))
        chosen = policy.select(view)
        found.append([set(row.nonzero()[:, 0].tolist()) for row in chosen])
        view = view._replace(undecided=view.undecided & ~chosen)
    return found


def test_the_threshold_falls_from_its_start_to_the_block_s_own_end() -> None:
    """By places from 48 on the threshold is as it is told times 1.1; without gates it is as it is told."""
    confidence = torch.tensor([0.55] * 64).expand(3, -1)
    policy = CaiUnmasking(start=0.9, ends=(0.7, 0.5), warmup=0.25, shape="linear", gated=False)
    for number, end in ((0, 0.7), (1, 0.5), (7, 0.5)):
        view = cai_view(3, confidence=confidence, block_number=torch.full((3,), number))
        for step, passed in ((0, 0.0), (16, 0.0), (40, 0.5), (63, 47 / 48)):
            at = view._replace(step_in_block=torch.full((3,), step))
            many = policy.select(at).sum(1).tolist()
            assert many == [64 if 0.9 + (end - 0.9) * passed < 0.55 else 1] * 3, (number, step)


def test_a_position_is_committed_once_it_has_waited_for_its_budget() -> None:
    """Easy ones after 8 steps, by the place not from 32 on; what is not decided by then is the best one per step."""
    confidence = torch.linspace(0.51, 0.54, 64).expand(1, -1)
    steps = decoded(CaiUnmasking(start=1.0, ends=(1.0,)), 9, confidence, cai_view(1))
    assert [len(step[0]) for step in steps[:8]] == [1] * 8
    assert steps[8][0] == {*range(32), 55}


@pytest.mark.parametrize(("stalls", "fired"), [("row", True), ("batch", False)])
def test_a_stall_is_told_by_the_row_s_own_commits_or_by_those_of_all(stalls: Any, fired: bool) -> None:
    """Two rows commit one per step each: too few for a row, and not for both together."""
    confidence = torch.linspace(0.41, 0.49, 64).expand(2, -1)
    steps = decoded(CaiUnmasking(start=1.0, ends=(1.0,), stalls=stalls), 22, confidence, cai_view(2))
    assert all(len(step[0]) == len(step[1]) == 1 for step in steps[:19])
    assert (len(steps[19][0]) > 30) == (len(steps[19][1]) > 30) == fired


def test_rows_that_meet_at_a_stall_are_told_from_rows_apart(catalogue: Catalogue) -> None:
    """A policy that goes by all rows fails the law that a row is the row alone."""
    view = cai_view(2, step_in_block=torch.full((2,), 19))
    told = torch.tensor([0.0, 19, 64, 3, 0, 0])
    beside = view._replace(memory=told.expand(2, 64, -1).clone())
    beside.memory[1, :, 2] = 70.0  # type: ignore[index]  # the other row committed six
    alone = UnmaskingView(*(x[:1] if isinstance(x, torch.Tensor) else x for x in beside))
    for stalls, same in (("row", True), ("batch", False)):
        policy = CaiUnmasking(stalls=stalls)  # type: ignore[arg-type]
        assert torch.equal(policy.remember(beside)[:1], policy.remember(alone)) == same


def test_a_row_in_a_slot_is_told_the_length_of_its_short_last_block(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Columns that fill a block up are none of its length, over which a threshold falls."""
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    select = TopKUnmasking.select

    def watched(self: TopKUnmasking, view: UnmaskingView) -> torch.Tensor:
        assert view.block is not None
        assert view.block_number is not None
        assert view.block_length is not None
        seen.add((view.block.shape[1], tuple(view.block_number.tolist()), tuple(view.block_length.tolist())))
        return select(self, view)

    monkeypatch.setattr(TopKUnmasking, "select", watched)
    keeps = {"skip": {"keep": [[0, 1.0], [0.5, 0.5]]}, "importance": {"name": "random"}}
    engine = build("llada-0", "es-dllm", gen_length=24, block_length=8, refresh={"prompt_refresh": 64}, **keeps)
    slots = engine.slots(3, 40)
    for length in (24, 21, 19):
        slots.admit(prompts(1, 12, seed=3), components=slots.components.varied({"gen_length": length}, build.catalogue))
    for slot in range(3):
        slots.step([slot])
    while slots.busy:
        for slot in slots.finished():
            slots.take(slot)
        if groups := slots.groups():
            slots.step(max(groups, key=len))
    assert any(columns == 8 and 5 in told for columns, _, told in seen)
    pairs = {pair for _, numbers, told in seen for pair in zip(numbers, told, strict=True)}
    assert pairs >= {(0, 8), (1, 8), (2, 8), (2, 5), (2, 3)}


WRONG = [
    ("cai", {"ends": []}, "must be probabilities, one at least"),
    ("cai", {"ends": [0.7, 1.2]}, "ends = [0.7, 1.2] must be probabilities"),
    ("cai", {"shape": "square"}, "unknown value 'square'; known: cosine, linear"),
    ("cai", {"stalls": "all"}, "unknown value 'all'; known: batch, row"),
    ("frechet-profile", {"margin": 1.5}, "'margin' must be <= 1.0"),
    ("frechet-profile", {"margin": float("nan")}, "nan is no finite number"),
    ("local-leap", {"relaxed_threshold": 0.95}, "relaxed_threshold = 0.95 must be at most threshold = 0.9"),
    ("local-leap", {"radius": -1}, "'radius' must be >= 0"),
    ("local-leap", {"threshold": 1.5}, "'threshold' must be <= 1.0"),
    ("hierarchical", {"low_threshold": -0.1}, "'low_threshold' must be >= 0.0"),
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG, ids=str)
def test_a_wrong_option_is_refused_with_what_would_do(
    name: str, options: dict[str, Any], message: str, catalogue: Catalogue
) -> None:
    with pytest.raises(ConfigError) as raised:
        catalogue.build("unmasking", ComponentConfig(name, options))
    assert message in str(raised.value)


def test_a_block_s_first_position_goes_alone_where_that_is_asked_for() -> None:
    sure = [16] * 12
    view = shown(sure, ["m"] * 12)
    alone = FrechetProfileUnmasking(first_alone=True)
    assert places(view, FrechetProfileUnmasking()) == set(range(12))
    assert places(view, alone) == {0}
    assert places(view._replace(step_in_block=torch.ones(1, dtype=torch.int64)), alone) == set(range(12))
    assert places(shown(sure, ["d", *"m" * 11]), alone) == set(range(1, 12))
