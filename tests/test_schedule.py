"""Planning: properties over ints, without a model and without torch."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import is_refresh, keep_counts, window

from esdllm import Catalogue
from esdllm.plan import Block, Facts, Layout, Phase, Step
from esdllm.planning.keeping import KeepCounts
from esdllm.planning.past import Past
from esdllm.planning.schedule import Planner
from esdllm.runtime.components import Components

CATALOGUE = Catalogue.load()
LAYERS = 8
MODES = ("vanilla", "prefix-cache", "dual-cache", "es-dllm")


def planner(preset: str, layout: Layout, early_stop: bool = False, **settings: Any) -> Planner:
    config = CATALOGUE.configure(preset, settings=settings)
    return Components.resolve(config, CATALOGUE).planner(layout, LAYERS, early_stop)


def unmasking(**options: Any) -> Any:
    return Components.resolve(CATALOGUE.configure("vanilla", settings={"unmasking": options}), CATALOGUE).unmasking


def never() -> Facts:
    raise AssertionError("the plan asked the device")


periods = st.integers(1, 40)
lengths = st.integers(1, 70)
shifts = st.sampled_from([0, 1])
rows_of_masks = st.lists(st.sets(st.integers(0, 60), max_size=40), min_size=1, max_size=3).filter(any)


@st.composite
def keep_ratios(draw: st.DrawFn) -> list[list[float]]:
    depths = sorted(draw(st.sets(st.floats(0.01, 0.99), max_size=3)))
    ratios = sorted(draw(st.lists(st.floats(0.01, 1), min_size=len(depths) + 1, max_size=len(depths) + 1)))
    return [list(pair) for pair in zip([0.0, *depths], reversed(ratios), strict=True)]


@st.composite
def early_skipping(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "gen_length": draw(lengths),
        "block_length": draw(lengths),
        "refresh": {"prompt_refresh": draw(periods), "block_refresh": draw(periods)},
        "skip": {"keep": draw(keep_ratios())},
    }


@given(early_skipping(), st.integers(1, 30), shifts, st.integers(1, 5))
def test_keep_counts_never_grow_and_never_reach_nothing(
    settings: dict[str, Any], prompt: int, shift: int, rate: int
) -> None:
    layout = Layout.of(prompt, settings["gen_length"], shift)
    steps = planner("es-dllm", layout, unmasking={"tokens_per_step": rate}, **settings).forecast()
    assert steps
    for step in steps:
        assert len(step.plan.keep) == LAYERS
        assert all(a >= b for a, b in pairwise((step.plan.window, *step.plan.keep)))
        assert step.plan.keep[-1] >= 1
        assert step.plan.skips == (step.plan.keep[-1] < step.plan.window)


@given(st.integers(1, 30), lengths, lengths, st.integers(1, 9), shifts, st.integers(1, 3), st.sampled_from(MODES))
def test_every_mask_is_committed_exactly_once(
    prompt: int, gen_length: int, block_length: int, rate: int, shift: int, rows: int, mode: str
) -> None:
    layout = Layout.of(prompt, gen_length, shift, rows)
    settings = {"block_length": block_length, "unmasking": {"tokens_per_step": rate}}
    check_quotas(planner(mode, layout, **settings), layout, rate)


@given(rows_of_masks, st.integers(1, 20), st.integers(1, 9))
def test_masks_anywhere_are_committed_exactly_once(rows: list[set[int]], block_length: int, rate: int) -> None:
    layout = Layout(61, tuple(tuple(sorted(row)) for row in rows))
    settings = {"block_length": block_length, "unmasking": {"tokens_per_step": rate}}
    check_quotas(planner("es-dllm", layout, **settings), layout, rate)


def check_quotas(planner: Planner, layout: Layout, rate: int) -> None:
    left = [set(row) for row in layout.masks]
    quotas = planner.quotas()
    for quota in quotas:
        inside = set(range(*quota.block))
        assert any(row & inside for row in left), "a block without a mask has no steps"
        for number, row in enumerate(left):
            assert quota.masked[number] == len(row & inside)
            assert all(counts[number] == (rate if row & inside else 0) for counts in quota.counts)
            row -= inside
        assert len(quota.counts) == -(-max(quota.masked) // rate)
        assert 1 <= len(inside) <= planner.block_length
    assert not any(left), "a mask in no block"
    assert all(a.block.stop <= b.block.start for a, b in pairwise(quotas))


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 6))
def test_an_even_schedule_takes_its_steps_and_its_first_ones_take_one_more(masks: int, a: int, blocks: int) -> None:
    steps = a * blocks
    counts = unmasking(steps=steps).counts(masks, blocks)
    assert (len(counts), sum(counts)) == (a, masks)
    assert list(counts) == sorted(counts, reverse=True)
    assert counts[0] - counts[-1] <= 1


@given(st.integers(1, 60), st.integers(1, 80))
def test_dreams_schedule_adds_up(masks: int, steps: int) -> None:
    counts = unmasking(name="time-schedule", steps=steps).counts(masks, 1)
    assert (len(counts), sum(counts)) == (steps, masks)
    assert min(counts) >= 0


def test_dreams_schedule_is_the_published_one() -> None:
    assert unmasking(name="time-schedule", steps=4).counts(16, 1) == (3, 4, 4, 5)


@given(early_skipping(), st.integers(1, 30), shifts)
def test_windows_refreshes_and_keep_counts_are_those_of_the_paper(
    settings: dict[str, Any], prompt: int, shift: int
) -> None:
    """One token per step."""
    gen_length, block_length = settings["gen_length"], settings["block_length"]
    every, often = settings["refresh"]["prompt_refresh"], settings["refresh"]["block_refresh"]
    first = prompt - shift
    layout = Layout.of(prompt, gen_length, shift)
    leftmost = first  # what the made-up device says was committed last
    c, last, previous = 0, 0, None
    walk = planner("es-dllm", layout, **settings).walk(lambda: Facts(1, 1, leftmost, False))
    for number, start in enumerate(range(first, first + gen_length, block_length)):
        block = Block(start, min(start + block_length, first + gen_length))
        c = -(-c // block_length) * block_length
        for j in range(block.stop - block.start):
            step = next(walk)
            assert step.moment[:3] == (c, j, number)
            assert step.block == block
            refresh = is_refresh(c, every, often)
            seen = window(c, j, range(*block), [leftmost], layout.length, every)
            if j == 0 and refresh and c % every:  # a window of fixed length, whose head is clamped on the device
                assert step.plan.clamped
                seen = range(previous.start, block.stop)
            assert (step.start, step.plan.window) == (seen.start, len(seen))
            keep = settings["skip"]["keep"]
            assert step.plan.keep == keep_counts(keep, LAYERS, len(seen), last, len(range(*block)), refresh)
            leftmost, last, c = block.stop - 1, 1, c + 1
        previous = block
    assert next(walk, None) is None


def test_the_published_keep_ratios_leave_about_two_fifths_of_the_work() -> None:
    components = Components.resolve(CATALOGUE.configure("es-dllm"), CATALOGUE)
    steps = components.planner(Layout.of(64, 256, 0), n_layers=32).forecast()
    skipping = next(step.plan for step in steps if step.plan.skips)
    assert skipping.keep == (64,) * 4 + (32,) * 4 + (16,) * 24
    assert skipping.layer_work() / (64 * 32) == pytest.approx(0.4, abs=0.005)


@pytest.mark.parametrize(
    ("mode", "later"), [("vanilla", (0, 20)), ("prefix-cache", (4, 20)), ("dual-cache", (4, 12))], ids=str
)
def test_the_fixed_modes_compute_their_windows(mode: str, later: tuple[int, int]) -> None:
    steps = planner(mode, Layout.of(4, 16, 0), block_length=8).forecast()
    assert [(step.start, step.start + step.plan.window) for step in steps[:2]] == [(0, 20), later]
    assert [step.moment.step_in_block for step in steps] == [*range(8), *range(8)]
    assert (steps[8].start, steps[8].plan.window) == (0, 20)
    assert not any(step.plan.skips for step in steps)


@given(st.sampled_from(MODES), st.integers(1, 30), lengths, st.integers(1, 6), st.integers(1, 8), shifts, st.booleans())
def test_one_token_a_step_never_asks_the_device(
    mode: str, prompt: int, gen_length: int, blocks: int, every: int, shift: int, delay_eos: bool
) -> None:
    refresh = {"refresh": {"prompt_refresh": 16, "block_refresh": every}} if mode == "es-dllm" else {}
    layout = Layout.of(prompt, gen_length, shift, rows=2)
    settings = {"block_length": blocks * every, "delay_eos": delay_eos, **refresh}
    steps = list(planner(mode, layout, **settings).walk(never))
    assert len(steps) == gen_length


@given(rows_of_masks, st.integers(1, 6), st.integers(1, 4))
def test_infilling_one_token_a_step_never_asks_the_device(rows: list[set[int]], blocks: int, every: int) -> None:
    layout = Layout(61, tuple(tuple(sorted(row)) for row in rows))
    refresh = {"prompt_refresh": 8, "block_refresh": every}
    made = planner("es-dllm", layout, block_length=blocks * every, refresh=refresh)
    assert len(list(made.walk(never))) == sum(max(quota.masked) for quota in made.quotas())


@given(lengths, lengths, st.integers(2, 9))
def test_several_tokens_a_step_ask_only_where_candidates_may_lack(gen_length: int, block_length: int, n: int) -> None:
    unmasking = {"tokens_per_step": n}
    layout = Layout.of(5, gen_length, 0)
    settings = {"block_length": block_length, "unmasking": unmasking, "delay_eos": False}
    steps = list(planner("dual-cache", layout, **settings).walk(never))
    full, rest = divmod(gen_length, block_length)
    assert len(steps) == full * -(-block_length // n) + -(-rest // n)


def test_a_block_goes_on_until_the_device_says_that_it_is_decided() -> None:
    """With delay_eos two candidates may be one: the quota's last steps repeat at its last rate."""
    undecided = iter([True, True, False])
    walk = planner("dual-cache", Layout.of(4, 8, 0), block_length=8, unmasking={"tokens_per_step": 4}).walk(
        lambda: Facts(next(undecided), 1, 0, False)
    )
    assert [step.counts for step in walk] == [(4,), (4,), (4,), (4,)]


@given(st.lists(st.integers(1, 8), min_size=1, max_size=5), st.integers(1, 8))
def test_a_block_that_ends_early_jumps_to_the_next_multiple(spent: list[int], block_length: int) -> None:
    assume(max(spent) <= block_length)
    made: list[Step] = []

    def read() -> Facts:
        block, step = made[-1].moment.block, made[-1].moment.step_in_block
        return Facts(step + 1 < spent[block], 1, made[-1].block.start, False)

    layout = Layout.of(4, block_length * len(spent), 0)
    for step in planner("es-dllm-parallel", layout, block_length=block_length).walk(read):
        made.append(step)  # noqa: PERF402 - read() looks at the last one
    expected = [(b * block_length + j, j, b) for b, steps in enumerate(spent) for j in range(steps)]
    assert [step.moment[:3] for step in made] == expected


def test_stopping_early_looks_every_few_steps_and_no_more() -> None:
    asked = []

    def read() -> Facts:
        asked.append(len(made))
        return Facts(1, 1, 0, finished=len(made) >= 20)

    made: list[Step] = []
    for step in planner("dual-cache", Layout.of(4, 64, 0), True, block_length=32, check_every=8).walk(read):
        made.append(step)  # noqa: PERF402 - read() looks at how many
    assert asked == [8, 16, 24]
    assert len(made) == 24


def test_where_it_is_known_what_was_committed_keep_counts_are_worked_out_for_that_alone() -> None:
    asked = []

    class Noting:
        def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
            asked.append(committed)
            return (window - committed,) * n_layers

    past = Past(lambda: Facts(1, 3, 0, finished=False), [8], ())
    past.committed = range(8)
    keeps = KeepCounts(Noting(), 4, Layout.of(4, 8, 0))
    assert keeps.next(8, 8, past) == (5,) * 4
    assert asked == [*range(8)]  # of which more than one would differ, so the device was asked
    past.facts()
    assert keeps.next(9, 8, past) == (6,) * 4
    assert asked == [*range(8), 3]


def test_where_the_logits_decide_it_stops_at_once_for_it_asks_anyway() -> None:
    asked = []

    def read() -> Facts:
        asked.append(len(made))
        return Facts(1, 1, 0, finished=len(made) >= 5)

    made: list[Step] = []
    layout = Layout.of(4, 64, 0)
    for step in planner("dual-cache-parallel", layout, True, block_length=32, check_every=8).walk(read):
        made.append(step)  # noqa: PERF402 - read() looks at how many
    assert asked == [1, 2, 3, 4, 5]  # once per step
    assert len(made) == 5


@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 16))
def test_a_run_has_a_handful_of_plans(prompt: int, blocks: int, block_length: int) -> None:
    """As many as graphs to compile: at most a canvas, and a prefix, a trail, a refresh and a skip for each window length."""
    layout = Layout.of(prompt, blocks * block_length, 0)
    refresh = {"prompt_refresh": 2 * block_length, "block_refresh": 4}
    steps = planner("es-dllm", layout, block_length=block_length, refresh=refresh).forecast()
    assert len({step.plan for step in steps}) <= 8 + blocks


def test_the_sparse_store_chooses_in_a_step_that_skips_nothing() -> None:
    settings = {"cache": {"name": "sparse", "delay_step": 2}, "refresh": {"prompt_refresh": 64, "block_refresh": 64}}
    steps = planner("es-dllm", Layout.of(4, 16, 0), block_length=16, **settings).forecast()
    assert [step.plan.phase for step in steps[:4]] == [Phase.ALL, Phase.ALL, Phase.SELECT, Phase.KEPT]
    assert [step.plan.skips for step in steps[:4]] == [False, True, False, True]


IMPORTS = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("planning imported torch")

sys.meta_path.insert(0, Forbidden())
package = type(sys)("esdllm")
package.__path__ = [sys.argv[1]]
sys.modules["esdllm"] = package
import esdllm.planning
assert "esdllm.plan" in sys.modules and "torch" not in sys.modules
print("planned")
"""


def test_planning_imports_no_torch() -> None:
    import esdllm

    result = subprocess.run([sys.executable, "-c", IMPORTS, esdllm.__path__[0]], capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("planned", "")
