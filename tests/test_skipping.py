"""Skip schedules: keep counts that never grow, and what each promises."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from esdllm import Catalogue, ComponentConfig, ConfigError, Engine, Model
from esdllm.plan import Facts, Layout
from esdllm.planning.keeping import KeepCounts
from esdllm.planning.past import Past
from esdllm_policies.skipping import AdaptiveSkip, BudgetSkip, DecaySkip, DepthSkip, NoSkip

CATALOGUE = Catalogue.load()
layers = st.integers(1, 80)
windows = st.integers(1, 300)
shares = st.floats(0.01, 1.0)


@st.composite
def depth_skips(draw: st.DrawFn) -> DepthSkip:
    ratios = sorted(draw(st.lists(shares, min_size=1, max_size=5)), reverse=True)
    return DepthSkip(keep=[[i / len(ratios), ratio] for i, ratio in enumerate(ratios)])


@st.composite
def decays(draw: st.DrawFn) -> DecaySkip:
    last, first = sorted(draw(st.tuples(shares, shares)))
    begin, end = sorted(draw(st.tuples(st.integers(0, 49), st.integers(51, 100))))
    return DecaySkip(first, last, begin / 100, end / 100, draw(st.sampled_from(["cosine", "linear"])))


budgets = st.builds(BudgetSkip, shares)
adaptives = st.builds(AdaptiveSkip, st.floats(0.1, 20.0), st.integers(2, 9), st.floats(0.0, 1.0))
schedules = st.one_of(st.just(NoSkip()), depth_skips(), decays(), budgets, adaptives)


def counts_of(schedule: Any, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
    assume(not isinstance(schedule, BudgetSkip) or n_layers == 1 or schedule.budget * n_layers > 1)
    found: tuple[int, ...] = schedule.keep_counts(n_layers, window, committed, block)
    return found


# ------------------------------------------------------------------------------------------------ every schedule


@given(st.sampled_from([DepthSkip, DecaySkip, BudgetSkip]), layers, windows, st.integers(1, 64), st.integers(1, 70))
def test_a_bucket_keeps_no_less_and_makes_few_plans_of_many_commits(
    make: Any, n_layers: int, window: int, block: int, bucket: int
) -> None:
    found = [counts_of(make(bucket=bucket), n_layers, window, committed, block) for committed in range(block + 1)]
    exact = [counts_of(make(), n_layers, window, committed, block) for committed in range(block + 1)]
    assert all(a >= b for mine, theirs in zip(found, exact, strict=True) for a, b in zip(mine, theirs, strict=True))
    assert len(set(found)) <= block // bucket + 2
    assert make(bucket=1) == make()


@given(schedules, layers, windows, st.integers(0, 80), st.integers(1, 64))
def test_keep_counts_never_grow_and_stay_in_the_window(
    schedule: Any, n_layers: int, window: int, committed: int, block: int
) -> None:
    counts = counts_of(schedule, n_layers, window, committed, min(block, window))
    assert len(counts) == n_layers
    assert all(1 <= b <= a <= window for a, b in pairwise((window, *counts)))


@given(schedules, layers, windows, st.integers(0, 80), st.integers(1, 64))
def test_what_was_just_committed_and_two_more_positions_are_always_computed(
    schedule: Any, n_layers: int, window: int, committed: int, block: int
) -> None:
    block = min(block, window)
    assert counts_of(schedule, n_layers, window, committed, block)[-1] >= min(committed + 2, block)


@given(
    st.one_of(st.just(DepthSkip()), decays(), budgets, adaptives),
    st.integers(1, 40),
    st.integers(1, 64),
    st.integers(0, 64),
    st.data(),
)
def test_a_layer_that_drops_in_some_window_drops_in_a_longer_one_or_in_the_block(
    schedule: Any, n_layers: int, block: int, committed: int, data: st.DataObject
) -> None:
    """So the planner knows from the block and the canvas where something is to be remembered."""
    window = data.draw(st.integers(block, 4 * block))

    def drops(size: int, last: int) -> set[int]:
        counts = counts_of(schedule, n_layers, size, last, block)
        return {layer for layer, (a, b) in enumerate(pairwise((size, *counts))) if b < a}

    assert drops(window, committed) <= drops(block, 0) | drops(4 * block, 0)


# ------------------------------------------------------------------------------------------------- none, by-depth


def test_the_published_schedule_keeps_half_and_then_a_quarter() -> None:
    assert DepthSkip().keep_counts(16, 64, 1, 64) == (64, 64, *(32,) * 2, *(16,) * 12)
    assert DepthSkip().keep_counts(8, 10, 1, 10) == (10, 5, 3, 3, 3, 3, 3, 3)  # never under committed + 2
    assert NoSkip().keep_counts(3, 7, 1, 7) == (7, 7, 7)


# --------------------------------------------------------------------------------------------------------- decay


def test_decay_goes_from_first_to_last_along_a_line_or_a_half_cosine() -> None:
    line = DecaySkip(1.0, 0.25, 0.0, 0.5, "linear")
    assert line.keep_counts(8, 64, 0, 64) == (64, 52, 40, 28, 16, 16, 16, 16)
    curve = DecaySkip(1.0, 0.25, 0.0, 0.5, "cosine")
    assert curve.keep_counts(8, 64, 0, 64) == (64, 56, 40, 23, 16, 16, 16, 16)


@given(decays())
def test_decay_keeps_first_before_begin_last_after_end_and_their_mean_halfway(schedule: DecaySkip) -> None:
    assert schedule.ratio(0.0) == schedule.ratio(schedule.begin) == schedule.first
    assert schedule.ratio(schedule.end) == pytest.approx(schedule.last)
    assert schedule.ratio(1.0) == pytest.approx(schedule.last)
    halfway = schedule.ratio((schedule.begin + schedule.end) / 2)
    assert halfway == pytest.approx((schedule.first + schedule.last) / 2)


# -------------------------------------------------------------------------------------------------------- budget


@given(shares, st.integers(2, 80), st.integers(8, 300))
def test_a_skip_step_s_work_is_the_budget_within_one_position_a_layer(
    budget: float, n_layers: int, window: int
) -> None:
    assume(budget * n_layers > 1)
    counts = BudgetSkip(budget).keep_counts(n_layers, window, 0, window)
    work, asked = window + sum(counts[:-1]), budget * n_layers * window
    assert work <= asked + 1e-6 + sum(count == 2 for count in counts) * 2  # where not even two positions would fit
    assert work > asked - n_layers


@given(st.integers(1, 80), windows)
def test_the_whole_budget_skips_nothing(n_layers: int, window: int) -> None:
    assert BudgetSkip(1.0).keep_counts(n_layers, window, 0, window) == (window,) * n_layers


@pytest.mark.parametrize("n_layers", [16, 28, 32, 80])
def test_the_work_of_the_published_ratios_as_a_budget_gives_the_published_ratios(n_layers: int) -> None:
    published = DepthSkip()
    ratios = [max((d, r) for d, r in published.keep if layer >= d * n_layers)[1] for layer in range(n_layers)]
    budget = (1 + sum(ratios[:-1])) / n_layers
    assert BudgetSkip(budget).ratios(n_layers) == pytest.approx(ratios)


@pytest.mark.parametrize(("budget", "n_layers"), [(0.1, 8), (0.125, 8), (0.5, 2)])
def test_a_budget_below_the_first_layer_s_work_is_refused(budget: float, n_layers: int) -> None:
    with pytest.raises(
        ConfigError, match=rf"budget = {budget} of {n_layers} layers .* give more than {1 / n_layers:.3f}"
    ):
        BudgetSkip(budget).keep_counts(n_layers, 64, 0, 64)


def test_a_budget_that_the_model_cannot_keep_is_found_before_anything_runs(llada: Model) -> None:
    config = CATALOGUE.configure("es-dllm", sets=["skip=budget", "skip.budget=0.1"])
    with pytest.raises(ConfigError, match=r"skip 'budget': budget = 0\.1 of 8 layers"):
        Engine.build(llada, config, CATALOGUE)


# ------------------------------------------------------------------------------------------------------ adaptive


@given(adaptives, layers, windows, st.integers(1, 64))
def test_adaptive_makes_no_more_distinct_plans_than_sizes_and_more_commits_never_keep_less(
    schedule: AdaptiveSkip, n_layers: int, window: int, block: int
) -> None:
    block = min(block, window)
    found = [schedule.keep_counts(n_layers, window, committed, block) for committed in range(block + 1)]
    assert len(set(found)) <= schedule.sizes
    assert all(b[-1] >= a[-1] for a, b in pairwise(found))


@given(adaptives, windows, st.integers(0, 64))
def test_adaptive_keeps_per_commit_for_each_commit_or_all(schedule: AdaptiveSkip, window: int, committed: int) -> None:
    kept = schedule.keep_counts(1, window, committed, window)[-1] if schedule.begin == 0 else window
    assert kept >= min(window, schedule.per_commit * committed)


def test_adaptive_rounds_up_to_parts_of_the_window() -> None:
    schedule = AdaptiveSkip(per_commit=4.0, sizes=4, begin=0.25)
    assert schedule.keep_counts(4, 64, 1, 64) == (64, 16, 16, 16)
    assert schedule.keep_counts(4, 64, 5, 64) == (64, 32, 32, 32)
    assert schedule.keep_counts(4, 64, 9, 64) == (64, 48, 48, 48)
    assert schedule.keep_counts(4, 64, 13, 64) == (64, 64, 64, 64)


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("decay", {"first": 0.2, "last": 0.4}, r"first = 0\.2 and last = 0\.4: shares may only fall with depth"),
    ("decay", {"begin": 0.6}, r"begin = 0\.6 and end = 0\.5: the share falls between them; end is deeper"),
    ("decay", {"shape": "sine"}, r"option 'shape': unknown value 'sine'; did you mean 'cosine'\?"),
    ("decay", {"last": 0.0}, "'last' must be > 0.0: 0.0"),
    ("budget", {"budget": 1.5}, "'budget' must be <= 1.0: 1.5"),
    ("adaptive", {"sizes": 1}, "'sizes' must be >= 2: 1"),
    ("adaptive", {"per_commit": 0}, "'per_commit' must be > 0.0: 0.0"),
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG, ids=str)
def test_a_wrong_option_is_refused_by_name(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"skip '{name}': {message}"):
        CATALOGUE.build("skip", ComponentConfig(name, options))


@given(schedules, layers, windows, st.lists(st.integers(1, 300), min_size=1, max_size=4), st.integers(1, 64))
def test_a_step_hands_on_what_the_row_that_keeps_most_does_and_each_row_keeps_its_own(
    schedule: Any, n_layers: int, window: int, sizes: list[int], block: int
) -> None:
    """Rows of which none drops anything are told no counts; the step's own do not depend on who is beside the longest."""
    assume(block <= window)
    real = [min(window, max(block, size)) for size in sizes]
    assume(any(size < window for size in real))
    alone = [counts_of(schedule, n_layers, size, 0, block) for size in (window, *real)]  # a budget that it can keep
    keeping = KeepCounts(schedule, n_layers, Layout(window, ((0,),) * len(real), tuple(window - size for size in real)))
    shared, rows = keeping.in_rows(0, window, block, Past(lambda: Facts(0, 0, 0, False), [1], ()))
    drops = any(own[-1] < size for own, size in zip(alone[1:], real, strict=True))
    event(f"any row drops positions: {drops}")
    if not drops:
        assert (shared, rows) == ((window,) * n_layers, None)
        return
    assert rows == tuple(alone[1:])
    assert shared == tuple(map(max, *alone))


def test_a_row_that_keeps_more_of_less_keeps_its_own() -> None:
    """As an adaptive schedule may, whose counts are rounded."""

    class Contrary:
        def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
            return (3,) * n_layers if window > 8 else (5,) * n_layers

    keeping = KeepCounts(Contrary(), 2, Layout(12, ((0,),) * 2, (0, 6)))
    shared, rows = keeping.in_rows(0, 12, 4, Past(lambda: Facts(0, 0, 0, False), [1], ()))
    assert (shared, rows) == ((5, 5), ((3, 3), (5, 5)))


@pytest.mark.parametrize(
    ("own", "whole", "serves"),
    [
        ((3, 2, 2), (8, 5, 4), True),  # 5, 3, 2 hidden positions go on
        ((3, 3, 3), (8, 8, 8), True),
        ((3, 2, 2), (3, 2, 2), True),  # all of them are dropped at once
        ((3, 2, 1), (6, 4, 4), False),  # one would have to come back
        ((3, 3, 3), (8, 5, 2), False),  # the row would lose one of its own
        ((2, 2, 2), (8, 8, 8), False),  # six of five
    ],
)
def test_hidden_positions_make_up_what_a_short_row_keeps_less_or_it_is_not_filled_up(
    own: tuple[int, ...], whole: tuple[int, ...], serves: bool
) -> None:
    class Told:
        def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
            return whole

    keeping = KeepCounts(Told(), 3, Layout(20, ((0,),)))
    past = Past(lambda: Facts(0, 0, 0, False), [1], ())
    assert keeping.filled(own, 3, 8, 8, past) == (whole if serves else None)
