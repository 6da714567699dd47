"""The contract of every kind: what is registered keeps it."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from family_cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples

from esdllm import (
    CacheShape,
    Candidates,
    Catalogue,
    ComponentConfig,
    DecodeConfig,
    Engine,
    Moment,
)
from esdllm.errors import EsdllmError, InputError
from esdllm.plan import Layout
from esdllm.plugins.catalogue import KINDS
from esdllm.testing import (
    CHECKS,
    GEOMETRIES,
    check_cache_store,
    check_generation,
    check_model_family,
    check_preset,
    strategies,
    tiny_model,
)
from esdllm_policies.importance import ConfidenceScorer
from esdllm_policies.sampling import GumbelSampler
from esdllm_policies.skipping import NoSkip

pytestmark = pytest.mark.covers

CATALOGUE = Catalogue.load()
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("unmasking", "time-schedule"): {"steps": 12},
    ("unmasking", "p2"): {"steps_per_block": 12},
}
"""options without which a run of the contract's length would be long"""
LOSSY = {"int8": 0.5 / 127 * 1.01}
"""cache stores that are not exact, and how far off a number is, in the largest of its vector"""
ELSEWHERE = {case.family for case in CASES}
"""families that are held to their contract with a checkpoint, in test_families.py"""
ALL = [(kind, name) for kind in KINDS for name in CATALOGUE.names(kind) if kind != "model" or name not in ELSEWHERE]


# ------------------------------------------------------------------------------------------- what is registered


def test_every_kind_has_a_contract() -> None:
    assert set(CHECKS) == set(KINDS)
    assert GEOMETRIES.keys() | ELSEWHERE == set(CATALOGUE.names("model"))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), ALL)
def test_every_registered_component_keeps_the_contract_of_its_kind(kind: str, name: str) -> None:
    if kind == "preset":
        check_preset(CATALOGUE.preset(name), CATALOGUE)
        return
    component = CATALOGUE.build(kind, ComponentConfig(name, OPTIONS.get((kind, name), {})))
    if kind == "model":
        check_model_family(component, GEOMETRIES[name])
    elif kind == "cache":
        check_cache_store(component, tolerance=LOSSY.get(name, 0.0))
    else:
        CHECKS[kind](component)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("es-dllm", "Dream"),
        ("dual-cache-parallel", "llada"),
        pytest.param("es-dllm", "llada", marks=pytest.mark.full),
        pytest.param("dual-cache-parallel", "Dream", marks=pytest.mark.full),
    ],
)
def test_a_preset_s_generation_compiles_and_keeps_the_laws(name: str, family: str) -> None:
    config = CATALOGUE.configure(name, settings={"gen_length": 4, "block_length": 4, "early_stop": False})
    check_generation(config, model=tiny_model(family, catalogue=CATALOGUE), catalogue=CATALOGUE, compiled=True)


@given(strategies.configurations(CATALOGUE))
@examples(6)
def test_policies_that_go_together_keep_the_laws_of_a_generation(config: DecodeConfig) -> None:
    check_generation(config, model=tiny_model("Dream", catalogue=CATALOGUE), catalogue=CATALOGUE)


# --------------------------------------------------------------------------------------------- whole generations


@attrs.frozen
class Reading(ConfidenceScorer):
    """A scorer that reads the device."""

    def score(self, view: Any) -> torch.Tensor:
        return super().score(view) + float(view.confidence.max())


@attrs.frozen
class Leaning(ConfidenceScorer):
    """A scorer that lets one row have a say in another's."""

    def score(self, view: Any) -> torch.Tensor:
        return super().score(view) * (1.0 if view.confidence.shape[0] == 1 else -1.0)


@attrs.frozen
class Drifting(GumbelSampler):
    """A sampler that draws anew in every run."""

    def sample(self, view: Any) -> Candidates:
        tokens = torch.randint_like(view.positions, 60)
        confidence = view.logits.softmax(-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        return Candidates(tokens, confidence)


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ({"importance": Reading()}, "a step reads the device: on the meta device it raised"),
        ({"importance": Leaning()}, "a row alone decodes to .*, and in a batch to"),
        ({"sampler": Drifting()}, "a second run differs from the first at row 0"),
    ],
    ids=["reading", "leaning", "drifting"],
)
def test_a_generation_that_breaks_a_law_is_told_which(components: dict[str, Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_generation(catalogue=CATALOGUE, **components)


def test_a_section_that_does_not_exist_is_named() -> None:
    with pytest.raises(InputError, match=r"there is no section 'skipping'.*did you mean 'skip'\?"):
        check_generation(skipping=NoSkip())


def test_a_family_without_a_tiny_model_is_named() -> None:
    with pytest.raises(InputError, match=r"no tiny model of the family 'dream'; did you mean 'Dream'\?"):
        tiny_model("dream")


# ---------------------------------------------------------------------------------------------------- strategies


@given(strategies.importance_views(), strategies.sample_views(), strategies.unmasking_views(memory=2))
@examples(20)
def test_drawn_views_are_of_one_batch_and_window(importance: Any, sampled: Any, unmasking: Any) -> None:
    for view in (importance, sampled, unmasking):
        assert view.positions.dtype == torch.int64
        assert view.seeds.shape == view.positions.shape[:1]
    assert importance.last.shape == importance.x.shape
    assert (importance.positions.sort(1).values.diff() > 0).all()
    assert not (importance.undecided & importance.committed).any()
    assert unmasking.memory.shape == (*unmasking.tokens.shape, 2)
    assert torch.equal(unmasking.undecided.gather(1, unmasking.columns), unmasking.eligible)


@given(strategies.skip_questions(), strategies.moments(known=True), strategies.layouts(1), strategies.prompts())
@examples(20)
def test_drawn_questions_to_planners_can_be_asked(
    question: dict[str, int], moment: Moment, layout: Layout, rows: list[list[int]]
) -> None:
    assert 1 <= question["block"] <= question["window"]
    assert moment.unrefreshed is not None
    assert (moment.since_refresh is None) is (moment.step == 0)
    assert all(0 <= position < layout.length - 1 for row in layout.masks for position in row)
    assert any(layout.masks)
    assert all(rows)


@given(strategies.attention_cases(), strategies.cache_shapes())
@examples(20)
def test_drawn_keys_are_never_all_left_out(case: Any, shape: CacheShape) -> None:
    queries, read = case
    assert queries.shape[2] % read.keys.shape[2] == 0
    assert read.bias is None or bool((read.bias == 0).any(1).all())
    assert set(shape.remembered) <= set(range(shape.n_layers))


@given(st.data())
@examples(5)
def test_drawn_configurations_can_be_planned_and_keep_what_is_fixed(data: st.DataObject) -> None:
    config = data.draw(strategies.configurations(CATALOGUE, skip="none", gen_length=5))
    assert (config.skip.name, config.gen_length) == ("none", 5)
    Engine.build(tiny_model("Dream", catalogue=CATALOGUE), config, CATALOGUE)


def test_without_hypothesis_the_strategies_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "hypothesis", None)
    monkeypatch.delitem(sys.modules, "esdllm.testing.strategies")
    with pytest.raises(EsdllmError, match=r'needs hypothesis, which is not installed: pip install "esdllm\[testing\]"'):
        importlib.import_module("esdllm.testing.strategies")
