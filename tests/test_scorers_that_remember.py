"""Scorers that remember, that read more of logits than confidence, and that keep state of their own, which is refused."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, ClassVar

import attrs
import pytest
import torch
from helpers import offers
from torch import Tensor

from esdllm import Catalogue, Engine, ImportanceView, PluginError, RememberingScorer, SignalScorer
from esdllm.runtime.samples import importance_view
from esdllm.testing import check_importance_scorer, tiny_model
from esdllm_policies.averaging import AverageScorer
from esdllm_policies.importance import ConfidenceScorer, EntropyScorer, HybridScorer, MixScorer, WeightedScorer

SHORT = {
    "gen_length": 8,
    "block_length": 8,
    "early_stop": False,
    "skip": {"name": "by-depth", "keep": [[0, 0.75], [0.5, 0.5]]},
}
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]


@attrs.frozen
class Noting:
    """A scorer that notes all it sees, which tells what the runtime shows; it scores by position."""

    site: ClassVar[Any] = "hidden"
    keeps_history: ClassVar[bool] = False
    memory: ClassVar[int] = 2
    signals: ClassVar[Any] = ("margin", "entropy")
    seen: ClassVar[list[ImportanceView]] = []

    def remember(self, view: ImportanceView) -> Tensor:
        """Count the calls of each position, and note where it stands."""
        assert view.memory is not None
        return torch.stack([view.memory[..., 0] + 1, view.positions.float()], -1)

    def score(self, view: ImportanceView) -> Tensor:
        self.seen.append(view)
        return -view.positions.float()


def engine_of(importance: Any, catalogue: Catalogue | None = None, **settings: Any) -> Engine:
    catalogue = catalogue or Catalogue.load()
    config = catalogue.configure("es-dllm", settings={**SHORT, "importance": importance, **settings})
    return Engine.build(tiny_model(), config, catalogue)


def with_scorer(scorer: Any) -> Catalogue:
    return Catalogue.load({"made-up": offers("esdllm_importance_scorers", {"mine": scorer})})


def noted(**settings: Any) -> list[ImportanceView]:
    """Return the views of a run, without those of the rehearsal."""
    engine = engine_of("mine", with_scorer(Noting), **settings)
    Noting.seen.clear()
    engine.generate(PROMPTS)
    return list(Noting.seen)


# ---------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_a_scorer_gets_what_it_left_of_each_position_at_each_layer(scale: float) -> None:
    views, calls = noted(cfg_scale=scale), defaultdict[tuple[int, int, int], int](int)
    assert {view.layer for view in views} == {0, 2}
    assert len(views) > 10
    for view in views:
        assert view.memory is not None
        assert len(view.positions) == len(PROMPTS) * (2 if scale else 1)
        for row, (places, kept) in enumerate(zip(view.positions.tolist(), view.memory.tolist(), strict=True)):
            for place, (number, told) in zip(places, kept, strict=True):
                calls[view.layer, row, place] += 1
                assert (number, told) == (calls[view.layer, row, place], place)


def test_a_run_begins_with_nothing_remembered() -> None:
    engine = engine_of("mine", with_scorer(Noting))
    starts = []
    for _ in range(2):
        Noting.seen.clear()
        engine.generate(PROMPTS)
        starts.append(Noting.seen[0].memory)
    assert all(memory is not None and bool((memory[..., 0] == 1).all()) for memory in starts)


def test_a_scorer_that_remembers_nothing_costs_nothing() -> None:
    engine = engine_of("hybrid")
    assert (engine.components.can.score_memory, engine.components.can.signals) == (0, frozenset())
    view = importance_view()
    assert (view.memory, view.entropy, view.margin) == (None, None, None)


def test_an_average_without_decay_is_the_last_variation_and_with_it_follows_the_formula() -> None:
    views = [importance_view(seed, memory=1) for seed in range(3)]
    expected = torch.zeros_like(views[0].confidence)
    for decay in (0.0, 0.5, 0.9):
        memory, expected = torch.zeros(3, 9, 1), torch.zeros(3, 9)
        for view in views:
            change = (view.x - view.last).abs().mean(-1) / (view.last.square().mean(-1).sqrt() + 1e-6)
            change = change / change.amax(1, keepdim=True).clamp(min=1.0)
            expected = decay * expected + (1 - decay) * change
            memory = AverageScorer(decay=decay).remember(view._replace(memory=memory))
        torch.testing.assert_close(memory.squeeze(-1), expected)
    score = AverageScorer(alpha=0.25, decay=0.9).score(views[-1]._replace(memory=memory))
    torch.testing.assert_close(score, 0.25 * views[-1].confidence + 0.75 * expected + 3.0 * views[-1].committed.float())


def test_in_a_mix_each_part_remembers_and_reads_as_if_it_were_alone() -> None:
    parts = (AverageScorer(decay=0.5), EntropyScorer(of="margin"), ConfidenceScorer(), AverageScorer(decay=0.9))
    mix = MixScorer(parts=[WeightedScorer(scorer=part, weight=1.0) for part in parts])
    assert (mix.memory, mix.signals) == (2, {"margin"})
    view = importance_view(4, memory=2, signals=("margin",))._replace(memory=torch.rand(3, 9, 2))
    assert view.memory is not None
    kept = mix.remember(view)
    alone = [
        part.remember(view._replace(memory=view.memory[..., i : i + 1])) for i, part in ((0, parts[0]), (1, parts[3]))
    ]  # type: ignore[union-attr]
    torch.testing.assert_close(kept, torch.cat(alone, -1))
    plain = view._replace(margin=None)
    expected = (
        parts[0].score(plain._replace(memory=kept[..., :1]))
        + parts[1].score(view)
        + parts[2].score(plain)
        + parts[3].score(plain._replace(memory=kept[..., 1:]))
    )
    torch.testing.assert_close(mix.score(view._replace(memory=kept)), expected)
    assert MixScorer(parts=[WeightedScorer(scorer=ConfidenceScorer())]).memory == 0


# --------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("shift", [0, 1])
def test_signals_are_those_of_the_position_s_last_logits(shift: int) -> None:
    """Told by an unmasking policy that sees the logits, step for step."""
    logits: dict[tuple[int, int], Tensor] = {}

    @attrs.frozen
    class Watching:
        def counts(self, masked: int, blocks: int) -> tuple[int, ...]:
            return (1,) * masked

        def select(self, view: Any) -> Tensor:
            for row, places in enumerate(view.positions.tolist()):
                logits.update({(row, place): view.logits[row, at].clone() for at, place in enumerate(places)})
            best = view.confidence.masked_fill(~view.eligible, -1.0).argmax(1, keepdim=True)
            return torch.zeros_like(view.eligible).scatter(1, best, True) & view.eligible

    seen: list[int] = []

    @attrs.frozen
    class Checking(Noting):
        def score(self, view: ImportanceView) -> Tensor:
            assert view.entropy is not None
            assert view.margin is not None
            known = view.undecided & (view.confidence > 0)
            assert not bool((view.entropy != 0).logical_and(~known).any())
            assert not bool((view.margin != 0).logical_and(~known).any())
            for row, at in known.nonzero().tolist() if logits else ():
                odds = logits[row, int(view.positions[row, at])].double().softmax(-1).sort(descending=True).values
                assert float(view.margin[row, at]) == pytest.approx(float(odds[0] - odds[1]), abs=1e-4)
                assert float(view.entropy[row, at]) == pytest.approx(float(torch.special.entr(odds).sum()), abs=1e-4)
                seen.append(row)
            return -view.positions.float()

    plugins = {
        "scorer": offers("esdllm_importance_scorers", {"mine": Checking}),
        "policy": offers("esdllm_unmasking_policies", {"watching": Watching}),
    }
    catalogue = Catalogue.load(plugins)
    settings = {**SHORT, "gen_length": 10, "importance": "mine", "unmasking": "watching"}
    model = tiny_model(("llada", "Dream")[shift])
    engine = Engine.build(model, catalogue.configure("es-dllm", settings=settings), catalogue)
    logits.clear()
    engine.generate(PROMPTS)
    assert {0, 1} == set(seen)
    assert len(seen) > 50


def test_doubt_of_a_distribution_goes_by_its_entropy_and_margin() -> None:
    view = importance_view(signals=("entropy", "margin"))
    assert view.entropy is not None
    assert view.margin is not None
    known = (view.undecided & (view.confidence > 0)).float()
    raised = 3.0 * view.committed.float()
    entropy = EntropyScorer(of="distribution").score(view._replace(margin=None))
    torch.testing.assert_close(entropy, view.entropy / (1 + view.entropy) * known + raised)
    margin = EntropyScorer(of="margin", prefer="sure").score(view._replace(entropy=None))
    torch.testing.assert_close(margin, view.margin * known + raised)


@pytest.mark.parametrize("wrong", ["entropy", ("entropie",), 3, None, ("entropy", 1)])
def test_signals_that_there_are_none_of_are_named(wrong: Any) -> None:
    scorer = attrs.frozen(type("Bad", (Noting,), {"signals": wrong}))
    with pytest.raises(PluginError, match=r"'signals' = .*; give a tuple of any of 'entropy', 'margin'"):
        engine_of("mine", with_scorer(scorer))


# ------------------------------------------------------------------------------------------------------------ state


@attrs.define(eq=False, slots=False)
class Stateful:
    """An average that a scorer keeps itself, as one would write it without the interface."""

    site: ClassVar[Any] = "hidden"
    keeps_history: ClassVar[bool] = True
    average: Any = attrs.field(default=None, init=False)
    calls: int = attrs.field(default=0, init=False)
    layers: dict[int, Tensor] = attrs.field(factory=dict, init=False)

    def score(self, view: ImportanceView) -> Tensor:
        change = (view.x - view.last).abs().float().mean(-1)
        self.average = change if self.average is None else 0.9 * self.average + 0.1 * change
        return self.average  # type: ignore[no-any-return]


class ByLayer(Stateful):
    def score(self, view: ImportanceView) -> Tensor:
        held = self.layers.get(view.layer)
        self.layers[view.layer] = view.confidence
        return view.confidence if held is None else view.confidence - held


class Counting(Stateful):
    def score(self, view: ImportanceView) -> Tensor:
        self.calls += 1
        return view.confidence * self.calls


class LastOnly(Stateful):
    """Gives the same when called twice with the same, and not when it saw another in between."""

    def score(self, view: ImportanceView) -> Tensor:
        held = view.x if self.average is None else self.average
        self.average = view.x
        return (view.x - held).abs().float().mean(-1)


class InPlace(Stateful):
    def score(self, view: ImportanceView) -> Tensor:
        self.average = torch.zeros(1) if self.average is None else self.average
        self.average += view.confidence.sum()
        return view.confidence + self.average


class Chance(Stateful):
    def score(self, view: ImportanceView) -> Tensor:
        return torch.rand(view.confidence.shape)


class OfAClass(Stateful):
    seen: ClassVar[list[float]] = []

    def score(self, view: ImportanceView) -> Tensor:
        self.seen.append(1.0)
        return view.confidence + len(self.seen)


NUMBER = [0.0]


class OfTheModule(Stateful):
    def score(self, view: ImportanceView) -> Tensor:
        NUMBER[0] += 1
        return view.confidence + NUMBER[0]


STATEFUL = [Stateful, ByLayer, Counting, LastOnly, InPlace, Chance, OfAClass, OfTheModule]


@pytest.mark.parametrize("kind", STATEFUL)
def test_a_scorer_that_keeps_state_is_refused_with_what_to_use(kind: type) -> None:
    wanted = r"keeps state .*; .*RememberingScorer \(memory, remember\(view\)\)"
    with pytest.raises(PluginError, match=f"importance 'mine'.* {wanted}"):
        engine_of("mine", with_scorer(kind)).generate(PROMPTS)
    with pytest.raises(AssertionError, match=wanted):
        check_importance_scorer(kind())


def test_scorers_that_keep_no_state_are_not_refused() -> None:
    for scorer in (HybridScorer, AverageScorer, EntropyScorer):
        assert engine_of("mine", with_scorer(scorer)).generate(PROMPTS).committed


def test_the_kit_names_a_memory_of_another_shape_and_one_that_is_no_number() -> None:
    class Wrong(AverageScorer):
        def remember(self, view: ImportanceView) -> Tensor:
            return view.confidence

    class Lost(AverageScorer):
        def remember(self, view: ImportanceView) -> Tensor:
            return super().remember(view) * float("nan")

    for scorer, message in ((Wrong(), r"must be \(3, 9, 1\)"), (Lost(), "remembers NaN")):
        with pytest.raises(AssertionError, match=message):
            check_importance_scorer(scorer)


def test_protocols_are_told_by_their_members() -> None:
    assert isinstance(AverageScorer(), RememberingScorer)
    assert not isinstance(HybridScorer(), RememberingScorer)
    assert isinstance(EntropyScorer(), SignalScorer)
