"""Importance: the published formulas, and what every scorer must hold to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
import torch
from helpers import CASES, offers
from hypothesis import given
from hypothesis import strategies as st

from esdllm import (
    Catalogue,
    ComponentConfig,
    ConfigError,
    Engine,
    ImportanceScorer,
    ImportanceView,
    Model,
    PluginError,
    relative_variation,
)
from esdllm.cli import main
from esdllm_policies.importance import (
    ConfidenceScorer,
    EntropyScorer,
    HybridScorer,
    MixScorer,
    RandomScorer,
    VariationScorer,
    WeightedScorer,
    variation,
)

CATALOGUE = Catalogue.load()


def view(**over: Any) -> ImportanceView:
    draw = torch.Generator().manual_seed(0)
    found = ImportanceView(
        layer=0,
        x=torch.randn(2, 6, 8, generator=draw),
        last=torch.randn(2, 6, 8, generator=draw),
        confidence=torch.tensor([[0.1, 0.9, 0.0, 0.3, 0.8, 0.0], [0.0, 0.0, 0.0, 0.4, 0.0, 0.0]]),
        undecided=torch.tensor([[1, 1, 0, 1, 1, 0], [0, 0, 0, 1, 0, 0]], dtype=torch.bool),
        committed=torch.tensor([[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=torch.bool),
        positions=torch.arange(6).expand(2, -1),
        seeds=torch.tensor([3, 4]),
        step=torch.tensor(5),
    )
    return found._replace(**over)


def build(name: str, **options: Any) -> Any:
    return CATALOGUE.build("importance", ComponentConfig(name, options))


# ------------------------------------------------------------------------------- variation, hybrid, chance: as published


def test_variation_is_the_mean_change_over_the_last_rms_scaled_by_the_row_s_maximum() -> None:
    v = view()
    raw = (v.x - v.last).abs().mean(-1) / (v.last.pow(2).mean(-1).sqrt() + 1e-6)
    assert float(raw.max()) > 1
    assert torch.allclose(variation(v), raw / raw.max(1, keepdim=True).values.clamp(min=1))
    small = view(x=v.last * 1.01)
    assert float(variation(small).max()) < 0.02  # below 1 nothing is scaled
    assert (variation(view(x=v.last)) == 0).all()


def test_the_hybrid_adds_2_to_the_two_most_confident_and_3_to_what_was_just_committed() -> None:
    v = view(x=view().last)  # no variation
    score = HybridScorer(alpha=0.5).score(v)
    assert torch.allclose(score[0], torch.tensor([0.05, 2.45, 3.0, 0.15, 2.4, 0.0]))
    assert torch.allclose(score[1], torch.tensor([0.0, 0.0, 0.0, 2.2, 0.0, 3.0]))  # never to a confidence of 0
    assert torch.equal(HybridScorer(alpha=0.0).score(v), 3.0 * v.committed)
    assert float(HybridScorer(alpha=1.0).score(v)[0, 2]) == 0


def test_chance_is_uniform_new_at_every_step_and_layer_and_the_same_wherever_a_position_stands() -> None:
    none = torch.zeros(2, 600, dtype=torch.bool)
    v = view(positions=torch.arange(600).expand(2, -1), committed=none, undecided=none, confidence=none.float())
    score = RandomScorer().score(v)
    assert score.shape == (2, 600)
    assert score.dtype == torch.float32
    assert 0 < float(score.min()) < float(score.max()) < 1
    assert abs(float(score.mean()) - 0.5) < 0.05
    for other in (v._replace(step=torch.tensor(6)), v._replace(layer=1), v._replace(seeds=torch.tensor([5, 6]))):
        assert abs(float(torch.corrcoef(torch.stack([score[0], RandomScorer().score(other)[0]]))[0, 1])) < 0.15
    shuffled = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    moved = v._replace(positions=v.positions[:, shuffled])
    assert torch.equal(RandomScorer().score(moved), score[:, shuffled])


def test_chance_raises_what_the_hybrid_raises_unless_told_not_to() -> None:
    raised, plain = RandomScorer().score(view()), RandomScorer(raised=False).score(view())
    difference = raised - plain
    assert torch.allclose(difference[0], torch.tensor([0.0, 2.0, 3.0, 0.0, 2.0, 0.0]), atol=1e-5)
    assert float(plain.max()) < 1


# ------------------------------------------------------------------------------------------------------- entropy

CONFIDENCES = st.lists(st.floats(2**-20, 1.0, width=32), min_size=6, max_size=6)


@given(CONFIDENCES)
def test_doubt_is_the_entropy_of_two_outcomes_highest_at_a_half_and_0_where_the_model_is_sure(
    found: list[float],
) -> None:
    alone = {"undecided": torch.ones(1, 6, dtype=torch.bool), "committed": torch.zeros(1, 6, dtype=torch.bool)}
    score = EntropyScorer().score(view(confidence=torch.tensor([found]), **alone))[0]
    for confidence, given_score in zip(found, score.tolist(), strict=True):
        rest = 1 - confidence
        nats = -confidence * math.log(confidence) - (rest * math.log(rest) if rest else 0.0)
        assert given_score == pytest.approx(nats / math.log(2), abs=1e-5)
    sure = EntropyScorer(prefer="sure").score(view(confidence=torch.tensor([found]), **alone))[0]
    assert torch.allclose(score + sure, torch.ones(6))


@pytest.mark.parametrize("prefer", ["sure", "unsure"])
def test_doubt_says_nothing_of_decided_positions_nor_of_those_without_logits_but_raises_what_was_committed(
    prefer: Any,
) -> None:
    found = view()
    score = EntropyScorer(prefer=prefer).score(found)
    unknown = ~(found.undecided & (found.confidence > 0))
    assert torch.equal(score[unknown], 3.0 * found.committed[unknown])
    assert (score[~unknown] > 0).all()


@given(st.floats(0.02, 0.98), st.lists(st.floats(0.01, 1.0), min_size=1, max_size=8))
def test_doubt_is_never_more_than_the_entropy_of_a_distribution_with_that_confidence(
    confidence: float, others: list[float]
) -> None:
    """By grouping: H = h(c) + (1 - c) H(others)."""
    rest = [(1 - confidence) * other / sum(others) for other in others]
    whole = -sum(p * math.log(p) for p in [confidence, *rest])
    two = -confidence * math.log(confidence) - (1 - confidence) * math.log(1 - confidence)
    assert two <= whole + 1e-9


# ----------------------------------------------------------------------------------------------------------- mix


@given(
    st.lists(
        st.tuples(st.sampled_from(["variation", "confidence", "random", "entropy"]), st.floats(0.01, 9.0)),
        min_size=1,
        max_size=4,
    )
)
def test_a_mix_is_the_weighted_sum_of_its_parts(parts: list[tuple[str, float]]) -> None:
    found = view()
    mix = build("mix", parts=[{"name": name, "weight": weight} for name, weight in parts])
    expected = sum(weight * build(name).score(found) for name, weight in parts)
    assert torch.allclose(mix.score(found), expected, rtol=1e-5)
    assert mix.keeps_history is any(build(name).keeps_history for name, _ in parts)


def test_a_mix_of_one_part_of_weight_1_is_that_part(llada: Model) -> None:
    for name in ("hybrid", "random"):
        settings = {"gen_length": 12, "block_length": 6}
        alone = CATALOGUE.configure("es-dllm", settings={**settings, "importance": name})
        mixed = CATALOGUE.configure("es-dllm", settings={**settings, "importance": {"name": "mix", "parts": [name]}})
        tokens = [Engine.build(llada, config, CATALOGUE).generate([[1, 2, 3]]).tokens for config in (alone, mixed)]
        assert torch.equal(*tokens)


def test_the_parts_options_are_their_own_and_their_site_is_the_mix_s() -> None:
    parts = [{"name": "hybrid", "alpha": 1.0, "site": "key"}, {"name": "random", "site": "key", "weight": 0.5}]
    mix = build("mix", parts=parts)
    assert mix.parts == (
        WeightedScorer(HybridScorer(alpha=1.0, site="key"), 1.0),
        WeightedScorer(RandomScorer(site="key"), 0.5),
    )
    assert mix.site == "key"
    assert not mix.keeps_history


def test_a_mix_holds_mixes() -> None:
    inner = {"name": "mix", "parts": ["confidence"], "weight": 2.0}
    found = view()
    assert torch.equal(build("mix", parts=[inner]).score(found), 2.0 * ConfidenceScorer().score(found))
    with pytest.raises(ConfigError, match=r"^importance\.parts\[0\]\.parts\[1\]: unknown importance 'x'"):
        build("mix", parts=[{"name": "mix", "parts": ["random", "x"]}])


WRONG_PARTS: list[tuple[Any, str]] = [
    (["variation", "randm"], r"^importance\.parts\[1\]: unknown importance 'randm'; did you mean 'random'\? known: "),
    (
        [{"name": "random", "wieght": 2}],
        r"^importance\.parts\[0\] 'random' has no option 'wieght'; did you mean 'weight'\? known: raised, site, weight",
    ),
    (
        [{"name": "random", "alpha": 1}],
        r"^importance\.parts\[0\] 'random' has no option 'alpha'; it is an option of importance 'hybrid': set "
        r'importance\.parts\[0\]\.name = "hybrid"',
    ),
    ([{"name": "random", "weight": "x"}], r"^importance\.parts\[0\]: option 'weight': 'x' is not a float"),
    ([{"name": "random", "weight": 0}], r"^importance\.parts\[0\]: 'weight' must be > 0.0: 0.0"),
    ([{"name": "random", "raised": 1}], r"^importance\.parts\[0\] 'random': option 'raised': 1 is not a bool"),
    ([{"weight": 1}], r"^importance\.parts\[0\]: a component is a name or a table with a name"),
    ("variation", r"^importance\.parts = 'variation': give a list of names or tables"),
    ([], r"^importance 'mix': parts = \[\] mixes nothing; give at least one scorer"),
    (
        [{"name": "random", "site": "key"}, "variation"],
        r"^importance 'mix': the parts score at different sites, hidden and key; positions drop at one",
    ),
]


@pytest.mark.parametrize(("parts", "message"), WRONG_PARTS, ids=str)
def test_a_wrong_part_is_refused_with_its_place(parts: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build("mix", parts=parts)


def test_a_mix_made_without_a_catalogue_takes_scorers_and_nothing_else() -> None:
    mix = MixScorer([WeightedScorer(VariationScorer(), 2.0)])
    assert torch.equal(mix.score(view()), 2.0 * VariationScorer().score(view()))
    with pytest.raises(ValueError, match="give WeightedScorers, or build the mix from a configuration"):
        MixScorer(["variation"])  # type: ignore[list-item]


def test_a_configuration_with_parts_goes_through_toml_and_back(tmp_path: Any, capsys: Any) -> None:
    parts = [{"name": "variation", "weight": 0.7}, {"name": "random", "weight": 0.3, "raised": False}]
    config = CATALOGUE.configure("es-dllm", settings={"importance": {"name": "mix", "parts": parts}})
    path = tmp_path / "mix.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    assert CATALOGUE.configure(file=path) == config
    line = 'importance.parts=[{name="variation", weight=0.7}, {name="random", weight=0.3, raised=false}]'
    assert CATALOGUE.configure("es-dllm", sets=["importance=mix", line]) == config
    assert main(["explain", "--model", str(CASES / "llada-0"), "--config", str(path), "--json"]) == 0
    assert '"weight": 0.3' in capsys.readouterr().out


# ----------------------------------------------------------------------------- anybody may hold components so


@attrs.frozen
class Halved:
    """A scorer around one other, as anybody might offer it."""

    of: ImportanceScorer = attrs.field(
        default="random", metadata={"kind": "importance", "help": "whose score to halve"}
    )

    @property
    def site(self) -> Any:
        return self.of.site

    @property
    def keeps_history(self) -> bool:
        return self.of.keeps_history

    def score(self, view: ImportanceView) -> torch.Tensor:
        return self.of.score(view) / 2


@pytest.mark.parametrize("given_as", ["variation", {"name": "variation"}])
def test_a_third_party_s_component_may_hold_one_of_any_plugin(given_as: str | Mapping[str, Any]) -> None:
    catalogue = Catalogue.load({"mine": offers("esdllm_importance_scorers", {"halved": Halved})})
    found = view()
    made = catalogue.build("importance", ComponentConfig("halved", {"of": given_as}))
    assert torch.equal(made.score(found), VariationScorer().score(found) / 2)
    assert catalogue.build("importance", ComponentConfig("halved")).of == RandomScorer()
    with pytest.raises(ConfigError, match=r"^importance\.of: unknown importance 'varation'; did you mean 'variation'"):
        catalogue.build("importance", ComponentConfig("halved", {"of": "varation"}))
    with pytest.raises(ConfigError, match=r"^importance\.of 'hybrid': 'alpha' must be <= 1.0: 2.0"):
        catalogue.build("importance", ComponentConfig("halved", {"of": {"name": "hybrid", "alpha": 2}}))


@attrs.frozen
class Kindless:
    """A part that says of no field what it holds."""

    weight: float = 1.0


MISDECLARED: list[tuple[dict[str, Any], Any, str]] = [
    ({"part": Kindless}, ["random"], r"^importance\.of\[0\]: Kindless must have one field whose metadata has a 'kind'"),
    (
        {"kind": "importence"},
        "random",
        r"^importance\.of is declared .* kind 'importence'; did you mean 'importance'\?",
    ),
]


@pytest.mark.parametrize(("metadata", "value", "message"), MISDECLARED, ids=["part", "kind"])
def test_a_field_that_is_declared_wrongly_is_the_plugin_s_fault(
    metadata: dict[str, Any], value: Any, message: str
) -> None:
    made = attrs.make_class("Made", {"of": attrs.field(default=value, metadata=metadata)}, frozen=True)
    catalogue = Catalogue.load({"mine": offers("esdllm_importance_scorers", {"made": made})})
    with pytest.raises(PluginError, match=message):
        catalogue.build("importance", ComponentConfig("made"))


def test_the_variation_is_the_mean_change_over_the_root_mean_square_before() -> None:
    x, last = torch.tensor([[3.0, -1.0], [2e-6, 0.0]]), torch.tensor([[1.0, 7.0], [0.0, 0.0]])
    assert torch.allclose(relative_variation(x, last), torch.tensor([5.0 / 5.0, 1.0]), rtol=1e-5, atol=0)
    assert relative_variation(x.bfloat16(), last.bfloat16()).dtype == torch.float32
