"""What the intervals promise: they are the published ones, hold what was measured, shrink with the number of problems."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esdllm.measure.evaluation import difference, share, speedup
from esdllm.measure.evaluation.outcomes import pareto
from esdllm.measure.evaluation.statistics import agreement

Z = 1.959963984540054
BOOLS = st.lists(st.booleans(), min_size=1, max_size=60)
PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
TOKENS = st.lists(st.integers(0, 3), max_size=8)
POINTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


def counted(right: int, n: int) -> list[bool]:
    return [True] * right + [False] * (n - right)


def cells(both: int, mine: int, theirs: int, neither: int) -> tuple[list[bool], list[bool]]:
    right = [True] * both + [True] * mine + [False] * theirs + [False] * neither
    return right, [True] * both + [False] * mine + [True] * theirs + [False] * neither


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_a_share_has_wilsons_interval_as_newcombe_1998_prints_it(right: int, n: int, low: float, high: float) -> None:
    found = share(counted(right, n))
    assert found.value == right / n
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


@given(BOOLS)
def test_wilsons_ends_are_where_the_score_test_just_rejects(right: list[bool]) -> None:
    found, n = share(right), len(right)
    for end in (found.low, found.high):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(found.value - end) / math.sqrt(end * (1 - end) / n) == pytest.approx(Z, rel=1e-6)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


@given(PAIRS)
def test_a_difference_is_walds_for_matched_pairs_with_half_a_pair_more_in_each_cell(
    pairs: list[tuple[bool, bool]],
) -> None:
    found = difference([mine for mine, _ in pairs], [theirs for _, theirs in pairs])
    n = len(pairs) + 2
    mine = (sum(a and not b for a, b in pairs) + 0.5) / n
    theirs = (sum(b and not a for a, b in pairs) + 0.5) / n
    half = Z * math.sqrt((mine + theirs - (mine - theirs) ** 2) / n)
    assert found.low == pytest.approx(max(-1.0, mine - theirs - half))
    assert found.high == pytest.approx(min(1.0, mine - theirs + half))
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(sum(a - b for a, b in pairs) / len(pairs))


@given(PAIRS)
def test_a_difference_the_other_way_round_is_its_negative(pairs: list[tuple[bool, bool]]) -> None:
    mine, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    there, back = difference(mine, theirs), difference(theirs, mine)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))


@given(BOOLS)
def test_what_never_differed_has_an_interval_all_the_same(right: list[bool]) -> None:
    found = difference(right, right)
    assert found.value == 0
    assert found.low < 0 < found.high


@given(st.tuples(*[st.integers(0, 8)] * 4).filter(any), st.integers(2, 5))
def test_more_problems_of_the_same_kind_make_every_interval_shorter(
    counts: tuple[int, int, int, int], times: int
) -> None:
    few, many = cells(*counts), cells(*(times * count for count in counts))
    for short, long in ((share(many[0]), share(few[0])), (difference(*many), difference(*few))):
        assert short.value == pytest.approx(long.value)
        assert short.high - short.low < long.high - long.low


def test_a_difference_of_two_lengths_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        difference([True], [True, False])


def test_nothing_measured_says_nothing() -> None:
    assert math.isnan(share([]).value)
    assert share([])[1:] == (0.0, 1.0)
    assert math.isnan(difference([], []).value)
    assert difference([], [])[1:] == (-1.0, 1.0)


# speed-ups


TIMES = st.lists(st.tuples(st.floats(0.01, 10), st.floats(0.01, 10)), min_size=2, max_size=40)
RANKS = {2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 8: 1, 9: 2, 11: 2, 12: 3, 15: 4, 20: 6, 25: 8, 30: 10, 40: 14}
"""from which smallest ratio the interval goes, as tables of the sign test's critical values print it (5 %, two-sided)"""


def heads(n: int, outcomes: int) -> float:
    """The chance of at most so many heads of n coins, counted."""
    return sum(math.comb(n, i) for i in range(outcomes + 1)) / 2**n


@pytest.mark.parametrize(("n", "k"), RANKS.items())
def test_a_speed_up_goes_from_the_ratio_of_the_sign_test_s_rank(n: int, k: int) -> None:
    found = speedup([1.0] * n, [float(ratio) for ratio in range(n, 0, -1)])
    assert found is not None
    assert (found.value, found.low, found.high) == ((n + 1) / 2, k, n + 1 - k)
    assert found.confidence == pytest.approx(1 - 2 * heads(n, k - 1))
    assert found.percent == (95 if n >= 6 else int(100 * (1 - 0.5 ** (n - 1))))


def test_a_speed_up_s_interval_holds_the_truth_as_often_as_it_says() -> None:
    draw, truth, held = np.random.default_rng(0), 1.7, {3: 0, 7: 0, 20: 0}
    for n in held:
        for _ in range(2000):
            found = speedup(np.ones(n).tolist(), (truth * np.exp(draw.standard_t(2, n))).tolist())
            assert found is not None
            held[n] += found.low <= truth <= found.high
        assert held[n] / 2000 == pytest.approx(found.confidence, abs=0.025)


@given(TIMES)
def test_a_speed_up_is_the_median_of_pairs_within_its_interval(pairs: list[tuple[float, float]]) -> None:
    mine, theirs = zip(*pairs, strict=True)
    found = speedup(mine, theirs)
    assert found is not None
    assert found.value == pytest.approx(np.median(np.array(theirs) / np.array(mine)))
    assert found.low <= found.value <= found.high
    assert speedup(mine[::-1], theirs[::-1]) == found


@pytest.mark.parametrize("n", [0, 1])
def test_one_batch_has_no_speed_up(n: int) -> None:
    assert speedup([1.0] * n, [2.0] * n) is None


def test_batches_without_a_partner_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        speedup([1.0, 1.0], [1.0])


def test_many_batches_take_no_time_to_judge() -> None:
    found = speedup([1.0] * 15000, [2.0] * 15000)
    assert found is not None
    assert 0.95 <= found.confidence < 0.96


@given(TOKENS, TOKENS)
def test_agreement_counts_equal_places_of_the_longer_answer(answer: list[int], reference: list[int]) -> None:
    found = agreement(answer, reference)
    longer = max(len(answer), len(reference))
    padded = [[*one, *[None] * (longer - len(one))] for one in (answer, reference)]
    same = sum(a == b for a, b in zip(*padded, strict=True))
    assert found == pytest.approx(same / longer if longer else 1.0)
    assert found == agreement(reference, answer)
    assert agreement(answer, answer) == 1


def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a != b and a[0] >= b[0] and a[1] >= b[1]


@given(POINTS)
def test_the_front_is_what_no_point_beats(points: list[tuple[int, int]]) -> None:
    front = pareto(points)
    kept = {points[i] for i in front}
    assert kept == {point for point in points if not any(beats(other, point) for other in points)}
    assert [points[i] for i in front] == sorted(kept)
    assert front == [points.index(points[i]) for i in front]
