"""Positions that come into a layer with what is remembered of them: dropped ones that come back, refreshes from a layer on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest.mock import patch

import attrs
import pytest
import torch
from helpers import offers
from torch import Tensor

from esdllm import Catalogue, ConfigError, Engine, ImportanceView, Moment, Scope, Window
from esdllm.plan import StepPlan
from esdllm.runtime import forward
from esdllm.testing import check_refresh_policy, check_skip_schedule, tiny_model
from esdllm_policies.skipping import DepthSkip

PROMPTS = [[5, 6, 7, 8], [9, 10]]
MIDDLE = [[0, 1], [0.25, 0.5], [0.5, 1]]
SITES = ("hidden", "key", "value")


@attrs.frozen
class Leftmost:
    """Scores by position, so that it is known who goes on and who comes back."""

    site: Any = "hidden"
    keeps_history: ClassVar[bool] = False

    def score(self, view: ImportanceView) -> Tensor:
        return -view.positions.float()


@attrs.frozen
class FromLayer:
    """A whole refresh at a block's first step, and one from a layer on at every third of the others."""

    first: int = 2
    window: str = "canvas"

    def from_layers(self, n_layers: int) -> tuple[int, ...]:
        return () if n_layers <= self.first else (self.first,)

    def scope(self, moment: Moment) -> Scope:
        if moment.step_in_block == 0:
            return Scope(Window.CANVAS, refresh=True)
        if moment.step_in_block % 3 == 1:
            return Scope(Window(self.window), refresh=True, from_layer=self.first)
        return Scope(Window.BLOCK, refresh=False)


def plugins(**over: Any) -> Catalogue:
    kinds = {"importance_scorers": {"leftmost": Leftmost}, "refresh_policies": {"from-layer": FromLayer}}
    return Catalogue.load(
        {f"made-{kind}": offers(f"esdllm_{kind}", found) for kind, found in {**kinds, **over}.items()}
    )


def engine_of(catalogue: Catalogue | None = None, family: str = "llada", **settings: Any) -> Engine:
    catalogue = catalogue or plugins()
    given = {"gen_length": 12, "block_length": 6, "early_stop": False, **settings}
    return Engine.build(tiny_model(family), catalogue.configure("es-dllm", settings=given), catalogue)


class Pass:
    """A step: its plan, each row's first real column, and what goes into each layer and comes out: positions, hidden states."""

    def __init__(self, plan: StepPlan, starts: list[int]) -> None:
        self.plan, self.starts = plan, starts
        self.into: list[dict[tuple[int, int], Tensor]] = []
        self.out: list[dict[tuple[int, int], Tensor]] = []

    def real(self, alive: Any) -> dict[tuple[int, int], Tensor]:
        """Return the hidden state of each row and position that is no padding."""
        return {
            (row, place): alive.hidden[row, at].clone()
            for row, places in enumerate(alive.positions.tolist())
            for at, place in enumerate(places)
            if place >= self.starts[row]
        }


@contextmanager
def watched() -> Iterator[list[Pass]]:
    """Give the steps of a run."""
    found: list[Pass] = []
    layer_of = forward._layer

    def watching(over: Any, layer: int, alive: Any, extremes: Any) -> Any:
        if layer == 0:
            found.append(Pass(over.plan, over.canvas.rows(over.canvas.offsets).tolist()))
        found[-1].into.append(found[-1].real(alive))
        out = layer_of(over, layer, alive, extremes)
        found[-1].out.append(found[-1].real(out))
        return out

    with patch.object(forward, "_layer", watching):
        yield found


def came_in(passes: Sequence[Pass]) -> list[tuple[Pass, int, set[tuple[int, int]]]]:
    """Return each step and layer that positions enter which did not leave the one before, and which.

    All that enters is checked: it is what left the layer before, now or when the position last did.
    """
    found, held = [], [dict[tuple[int, int], Tensor]() for _ in passes[0].into]
    for made in passes:
        for layer, (left, entered) in enumerate(zip(made.out, made.into[1:], strict=False)):
            held[layer].update(left)
            for key, hidden in entered.items():
                assert torch.equal(hidden, held[layer][key]), (layer, key)
            if others := entered.keys() - left.keys():
                found.append((made, layer + 1, others))
    return found


# ------------------------------------------------------------------------------------------------------ coming back


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS], ids=["alone", "padded"])
@pytest.mark.parametrize("scale", [0.0, 1.5], ids=["plain", "guided"])
def test_a_dropped_position_comes_back_with_what_last_left_the_layer(
    site: str, prompts: list[list[int]], scale: float
) -> None:
    skip = {"name": "by-depth", "keep": MIDDLE}
    engine = engine_of(skip=skip, importance={"name": "leftmost", "site": site}, cfg_scale=scale)
    with watched() as passes:
        engine.generate(prompts)
    back = came_in(passes)
    assert len(back) > 5
    assert {layer for _, layer, _ in back} == {3 if site == "hidden" else 2}  # behind a layer, or within
    for made, layer, _ in back:
        assert made.into[layer].keys() == made.into[0].keys()  # all are back


def test_those_come_back_first_that_scored_highest() -> None:
    skip = {"name": "by-depth", "keep": [[0, 1], [0.25, 0.34], [0.5, 0.67]]}
    engine = engine_of(skip=skip, importance="leftmost", unmasking={"name": "top-k", "order": "sequential"})
    with watched() as passes:
        engine.generate(PROMPTS[:1])
    back = came_in(passes)
    assert back
    for made, layer, others in back:
        window, before = sorted(place for _, place in made.into[0]), {place for _, place in made.out[layer - 1]}
        absent = [place for place in window if place not in before]
        assert sorted(place for _, place in others) == absent[: len(others)] != absent


def test_what_is_kept_is_kept_at_the_layers_where_a_schedule_lets_it() -> None:
    for site, expected in (("hidden", (1, 2)), ("key", (1,)), ("value", (1,))):
        skip = {"name": "by-depth", "keep": MIDDLE}
        engine = engine_of(skip=skip, importance={"name": "hybrid", "site": site})
        engine.generate(PROMPTS)
        assert tuple(engine.cache.remembered) == expected  # type: ignore[union-attr]
    engine = engine_of(skip={"name": "by-depth", "keep": [[0, 1], [0.25, 0.4]]}, importance={"site": "key"})
    engine.generate(PROMPTS)
    assert not engine.cache.remembered  # type: ignore[union-attr]


def test_a_middle_skip_costs_what_its_layers_compute() -> None:
    engine = engine_of(skip={"name": "by-depth", "keep": MIDDLE}, importance="leftmost")
    planned = [
        step.plan for step in engine.components.planner(engine.components.layout(4, engine.model.spec), 4).forecast()
    ]
    windows = {plan.window: plan.computed for plan in planned if plan.skips}
    assert windows == {window: (window, window, 3, window) for window in (6, 7)}
    assert all(plan.hands_on_fewer is False for plan in planned)


@attrs.frozen
class Saying:
    """A schedule that says what it is told to."""

    counts: Any = attrs.field(default=(), converter=tuple)
    layers: Any = attrs.field(default=(), converter=tuple)

    def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
        return tuple(max(1, window * count // 4) for count in self.counts)

    def returning(self, n_layers: int) -> tuple[int, ...]:
        return self.layers  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("counts", "layers", "message"),
    [
        ((4, 2, 4, 4), (3,), r"never growing, .* only at layers that it names in `returning`, here \(3,\)"),
        ((4, 2, 4, 4), (), r"never growing"),
        ((4, 2, 5, 5), (2,), r"between 1 and the window"),
        ((4, 2, 4, 2), (2, 3), r"drops positions of a window of \d+ at layer 3, which it names in `returning`"),
        ((4, 2, 4, 4), (2, 4), r"`returning` gave \(2, 4\) for 4 layers; give a tuple of layers from 0 to 3"),
        ((4, 2, 4, 4), (2, 2), r"ascending"),
        ((4, 2, 4, 4), (-1,), r"layers from 0 to 3"),
        ((4, 2, 4, 4), (True,), r"layers from 0 to 3"),
        ((4, 2, 4), (2,), r"keep counts .* for 4 layers"),
    ],
)
def test_a_schedule_that_lets_in_what_it_may_not_is_refused(counts: Any, layers: Any, message: str) -> None:
    skip = {"name": "saying", "counts": list(counts), "layers": list(layers)}
    with pytest.raises(ConfigError, match=message):
        engine_of(plugins(skip_schedules={"saying": Saying}), skip=skip)


def test_queries_are_not_remembered_where_hidden_states_are() -> None:
    with pytest.raises(ConfigError, match=r"set importance\.site to hidden, key or value"):
        engine_of(skip={"name": "by-depth", "keep": MIDDLE}, importance={"name": "hybrid", "site": "query"})
    assert engine_of(skip={"name": "by-depth", "keep": MIDDLE}, importance={"name": "confidence", "site": "query"})


@attrs.frozen
class Silent(DepthSkip):
    """Lets positions back in, and does not say so."""

    def returning(self, n_layers: int) -> tuple[int, ...]:
        return ()


def test_the_contract_of_schedules_knows_those_that_let_back_in() -> None:
    check_skip_schedule(DepthSkip(keep=MIDDLE))
    with pytest.raises(AssertionError, match=r"counts only fall, but at layers that `returning` names, here \(\)"):
        check_skip_schedule(
            attrs.make_class("Rising", {}, bases=(DepthSkip,), class_body={"returning": lambda self, n: ()})(
                keep=MIDDLE
            )
        )


# ----------------------------------------------------------------------------------------------- from a layer on


@pytest.mark.parametrize("window", ["canvas", "prefix"])
@pytest.mark.parametrize("first", [1, 2, 3])
@pytest.mark.parametrize("family", ["llada", "Dream"])
def test_a_refresh_from_a_layer_on_computes_the_block_below_it_and_the_window_from_it(
    window: str, first: int, family: str
) -> None:
    engine = engine_of(family=family, refresh={"name": "from-layer", "first": first, "window": window}, skip="none")
    with watched() as passes:
        engine.generate(PROMPTS)
    found = came_in(passes)
    assert found
    for made, layer, _ in found:
        assert layer == made.plan.from_layer == first
        stop = max(place for _, place in made.into[0])
        whole = {(row, place) for row, start in enumerate(made.starts) for place in range(start, stop + 1)}
        assert made.into[0].keys() < whole
        assert made.into[first].keys() == whole if window == "prefix" else made.into[first].keys() >= whole
        assert made.plan.computed == (6,) * first + (made.plan.window,) * (4 - first)


WRONG = [
    (Scope(Window.CANVAS, True, 3), r"it may from those that `from_layers` names, here \(2,\)"),
    (Scope(Window.CANVAS, False, 2), r"and no refresh; give Scope\(window, refresh=True, from_layer=2\)"),
    (Scope(Window.OPEN, True, 2), r"of the window 'open'"),
    (Scope(Window.CANVAS, True, -1), r"from layer -1 at step 1"),
]


@pytest.mark.parametrize(("answer", "message"), WRONG)
def test_a_refresh_that_cannot_begin_at_a_layer_is_refused(answer: Scope, message: str) -> None:
    @attrs.frozen
    class Wrong(FromLayer):
        def scope(self, moment: Moment) -> Scope:
            return Scope(Window.CANVAS, True) if moment.step == 0 else answer

    with pytest.raises(ConfigError, match=message):
        engine_of(plugins(refresh_policies={"wrong": Wrong}), refresh="wrong", skip="none")


def test_a_run_cannot_begin_at_a_layer() -> None:
    @attrs.frozen
    class Early(FromLayer):
        def scope(self, moment: Moment) -> Scope:
            return Scope(Window.CANVAS, True, 2)

    with pytest.raises(ConfigError, match="before any refresh of the canvas: nothing is remembered yet"):
        engine_of(plugins(refresh_policies={"early": Early}), refresh="early", skip="none")


def test_a_policy_whose_refreshes_begin_at_a_layer_keeps_its_contract() -> None:
    check_refresh_policy(FromLayer())
