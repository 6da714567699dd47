"""Rules that go by all confidences, by neighbours and by runs, against the same written position by position."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esdllm import Catalogue, ComponentConfig, ConfigError, UnmaskingView
from esdllm.testing import check_unmasking_policy
from esdllm_policies.neighbours import HierarchicalUnmasking, LocalLeapUnmasking
from esdllm_policies.profile import FrechetProfileUnmasking

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
    confidence = torch.tensor([[sixteenths[place] / 16 for place in at]])
    nothing = torch.zeros(1, dtype=torch.int64)
    return UnmaskingView(
        raw=torch.zeros(1, len(at), 4),
        tokens=torch.zeros_like(columns),
        confidence=confidence,
        eligible=eligible,
        positions=columns - padding,
        previous_tokens=torch.full_like(columns, -1),
        previous_confidence=torch.zeros_like(confidence),
        quota=nothing,
        step=nothing,
        seeds=nothing,
        columns=columns,
        undecided=undecided,
        step_in_block=nothing,
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


@pytest.mark.parametrize("name", ["frechet-profile", "local-leap", "hierarchical"])
def test_each_holds_to_the_contract(name: str, catalogue: Catalogue) -> None:
    check_unmasking_policy(catalogue.build("unmasking", ComponentConfig(name, {})))


WRONG = [
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
