"""Refreshing by commits: when, and what it cannot be combined with."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esdllm import Catalogue, ConfigError, Engine, Model, Moment, Scope, Window
from esdllm.plan import BlockCausal, Facts, Layout, Step
from esdllm.runtime.components import Components
from esdllm.testing import check_generation, tiny_model
from esdllm_policies.refreshing import OnCommitRefresh, SubBlockCacheRefresh

CATALOGUE = Catalogue.load()
PARALLEL: dict[str, Any] = {"unmasking": "threshold", "delay_eos": False}


def walk(committed: list[int], block_length: int = 16, **over: Any) -> list[tuple[Step, bool]]:
    """Return the steps of one block, the number that each commits made up, and whether they refresh."""
    settings = {"refresh": "on-commit", "gen_length": block_length, "block_length": block_length, **over}
    components = Components.resolve(CATALOGUE.configure("es-dllm", settings=settings), CATALOGUE)
    found: list[tuple[Step, bool]] = []
    planner = components.planner(Layout.of(4, block_length, 0), 8)
    for step in planner.walk(lambda: Facts(len(found) < len(committed), committed[len(found) - 1], 4, False)):
        found.append((step, components.refresh.scope(step.moment).refresh))  # noqa: PERF401 - the lambda looks at it
    return found


@given(st.lists(st.integers(0, 6), min_size=1, max_size=14), st.integers(1, 12))
def test_a_refresh_comes_as_soon_as_enough_was_committed_since_the_last(committed: list[int], commits: int) -> None:
    """The last one's own commits count: they came after what it computed."""
    found = walk(committed, refresh={"name": "on-commit", "commits": commits}, **PARALLEL)
    since = 0
    for number, (step, refresh) in enumerate(found):
        assert step.moment.unrefreshed == since
        assert refresh is (number == 0 or since >= commits)
        since = (0 if refresh else since) + committed[number]
    assert len(found) == len(committed)


@given(st.integers(1, 12))
def test_with_one_position_a_step_it_comes_every_so_many_steps(commits: int) -> None:
    found = walk([1] * 16, refresh={"name": "on-commit", "commits": commits}, delay_eos=False)
    assert [number for number, (_, refresh) in enumerate(found) if refresh] == list(range(0, 16, commits))


def test_the_window_is_the_canvas_then_all_up_to_the_block_s_end_or_the_block() -> None:
    assert OnCommitRefresh().scope(Moment(0, 0, 0, 0)) == Scope(Window.CANVAS, True)
    assert OnCommitRefresh().scope(Moment(8, 0, 1, None)) == Scope(Window.PREFIX, True)
    assert OnCommitRefresh(commits=3).scope(Moment(9, 1, 1, 2)) == Scope(Window.BLOCK, False)
    assert OnCommitRefresh(commits=3).scope(Moment(9, 1, 1, 3)) == Scope(Window.PREFIX, True)
    assert OnCommitRefresh(commits=3, prompt=False).scope(Moment(9, 1, 1, 3)) == Scope(Window.BLOCK, True)


SEVERAL = {"gen_length": 16, "block_length": 8, "refresh": "on-commit", "unmasking": {"tokens_per_step": 2}}


@pytest.mark.parametrize("over", [{}, {"skip": "none"}, {"delay_eos": False}], ids=str)
def test_several_positions_a_step_of_which_only_the_device_knows_are_refused(
    over: dict[str, Any], llada: Model
) -> None:
    config = CATALOGUE.configure("es-dllm", settings={**SEVERAL, **over})
    with pytest.raises(ConfigError, match=r"refresh 'on-commit' counts what is committed, which here only the device"):
        Engine.build(llada, config, CATALOGUE)


def test_several_positions_a_step_are_fine_where_the_plan_tells_how_many(llada: Model) -> None:
    config = CATALOGUE.configure("es-dllm", settings={**SEVERAL, "skip": "none", "delay_eos": False})
    assert Engine.build(llada, config, CATALOGUE).generate([[1, 2, 3]]).forwards == 8


def test_the_planner_does_not_ask_the_device_for_a_refresh_policy_s_sake() -> None:
    """With delay_eos, two per step may be fewer."""
    found = walk([2] * 4, refresh="periodic", unmasking={"tokens_per_step": 2}, block_length=8)
    assert [step.moment.unrefreshed for step, _ in found] == [0, None, None, None]


def parts(firsts: list[bool], layout: Layout, **over: Any) -> list[Step]:
    """Return the steps of the first part, the device's answer on its first token told after each."""
    settings = {"refresh": "sub-block-cache", "gen_length": 8, "block_length": 4, "unmasking": "threshold", **over}
    components = Components.resolve(CATALOGUE.configure("dual-cache", settings=settings), CATALOGUE)
    found: list[Step] = []
    planner = components.planner(layout, 8)
    for step in planner.walk(
        lambda: Facts(len(found) <= len(firsts), 1, 4, False, first_undecided=[*firsts, False][len(found) - 1])
    ):
        if step.moment.block:
            break
        found.append(step)
    return found


@pytest.mark.parametrize("shift", [0, 1])
def test_all_is_computed_until_the_first_token_is_decided_and_then_the_tokens_alone(shift: int) -> None:
    """Once it is decided it stays so, whatever the narrower step's own first position is."""
    found = parts([True, True, False, True], Layout.of(6, 8, shift))
    assert [step.scope.window for step in found] == [Window.CANVAS] * 3 + [Window.TOKENS] * 2
    assert [(step.start, step.plan.window) for step in found] == [(0, 14)] * 3 + [(6, 4)] * 2
    assert [step.block for step in found[-2:]] == [(6, 10 - shift)] * 2
    assert all(step.plan.decided <= step.plan.block == 4 - shift for step in found[-2:])


def test_in_a_block_of_attention_that_is_the_block_and_not_the_canvas() -> None:
    layout = Layout.of(8, 8, 1, attention=BlockCausal(8, leads=True))
    found = [step for step in parts([False, True, False, False], layout) if not step.plan.leads]
    assert [step.scope.window for step in found][:2] == [Window.CANVAS, Window.TOKENS]
    assert [(step.start, step.plan.window) for step in found][:2] == [(8, 8), (8, 4)]


def test_a_prompt_that_holds_the_first_token_leaves_the_rest_to_decide() -> None:
    """A canvas to fill in: the first step of a run computes all of it, for nothing is cached; a later block's need not."""
    assert SubBlockCacheRefresh().scope(Moment(0, 0, 0, first_undecided=False)) == Scope(Window.CANVAS, True)
    assert SubBlockCacheRefresh().scope(Moment(8, 0, 1, first_undecided=False)) == Scope(Window.TOKENS, False)
    layout = Layout.of(8, 8, 1, attention=BlockCausal(8, leads=True))
    led = [step for step in parts([False, False], layout) if not step.plan.leads]
    assert led[0].scope.window is Window.CANVAS


@pytest.mark.parametrize("over", [{"unmasking": "top-k"}, {"blocks": "sliding", "unmasking": "threshold"}], ids=str)
def test_a_first_token_that_only_the_device_knows_is_refused(over: dict[str, Any], llada: Model) -> None:
    config = CATALOGUE.configure("dual-cache", settings={"refresh": "sub-block-cache", "gen_length": 16, **over})
    with pytest.raises(
        ConfigError, match=r"'sub-block-cache' goes by whether a block's first token is decided.*threshold"
    ):
        Engine.build(llada, config, CATALOGUE)


class Hasty:
    """Asks for the tokens alone before the first of them is decided."""

    def scope(self, moment: Moment) -> Scope:
        return Scope(Window.TOKENS if moment.step else Window.CANVAS, refresh=moment.step == 0)


@pytest.mark.parametrize("over", [{}, {"unmasking": "threshold"}], ids=str)
def test_a_window_without_the_position_that_decides_the_first_token_is_refused(over: dict[str, Any]) -> None:
    components = Components.resolve(CATALOGUE.configure("dual-cache", settings={"block_length": 8, **over}), CATALOGUE)
    components = attrs.evolve(components, refresh=Hasty())
    told = Facts(1, 1, 4, False, first_undecided=True)
    with pytest.raises(ConfigError, match=r"decides all of a block but its first token.*undecided"):
        list(components.planner(Layout.of(4, 16, 1), 4).walk(lambda: told))


def test_it_keeps_the_laws_of_a_generation() -> None:
    settings = {"gen_length": 12, "block_length": 6, "early_stop": False, "unmasking": "threshold"}
    config = CATALOGUE.configure("dual-cache", settings={**settings, "refresh": "sub-block-cache"})
    check_generation(config, model=tiny_model("Dream"))
