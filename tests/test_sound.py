"""No answer comes of numbers that are none, holds a mask, or depends on how scores look: it is right, or an error."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import attrs
import pytest
import torch
from helpers import CASES, MASK
from runs import Around, Build, prompts
from torch import Tensor

from esdllm import (
    Candidates,
    Catalogue,
    Engine,
    ImportanceView,
    NumericsError,
    PluginError,
    SampleView,
    UnmaskingView,
    load_model,
)
from esdllm_policies.importance import ConfidenceScorer, HybridScorer, MixScorer, WeightedScorer

NAN, INF = float("nan"), float("inf")
SHORT = {"gen_length": 8, "block_length": 4}


def with_parts(engine: Engine, **parts: Any) -> Engine:
    engine.components = attrs.evolve(engine.components, **parts)
    return engine


# numbers that are none


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("layer", "weight", "value"),
    [
        (0, "q", NAN),
        (3, "q", INF),
        (1, "kv", NAN),
        (2, "kv", -INF),
        (0, "q", 1e25),
        (1, "kv", 1e30),
        (3, "mlp.down", NAN),
        (2, "attn_norm", INF),
        (0, "mlp_norm", NAN),
        (None, "norm", NAN),
        (None, "head", NAN),
        (None, "embedding", NAN),
    ],
)
def test_weights_that_are_no_numbers_or_overflow_are_found_with_any_attention(
    catalogue: Catalogue, attention: str, layer: int | None, weight: str, value: float
) -> None:
    model = load_model(CASES / "llada-0", "cpu", "float32", catalogue)
    adapter: Any = model.adapter
    found = attrgetter(weight)(adapter if layer is None else adapter.layers[layer])
    tensor = getattr(found, "weight", found)
    tensor[: len(tensor) // 2] = value if not math.isfinite(value) else tensor[: len(tensor) // 2] * value
    config = catalogue.configure("es-dllm", settings={"gen_length": 2, "block_length": 2, "attention": attention})
    with pytest.raises(NumericsError, match=r"at step 0; .*Look at the weights, or use a wider dtype"):
        Engine.build(model, config, catalogue).generate([[1, 2, 3]])


@pytest.mark.parametrize("guided", [0.0, 1.5])
def test_a_token_whose_keys_overflow_is_found_once_it_stands_there(catalogue: Catalogue, guided: float) -> None:
    model = load_model(CASES / "llada-0", "cpu", "float32", catalogue)
    adapter: Any = model.adapter
    plain = adapter.project

    def projected(layer: int, hidden: Tensor, places: Any, readers: Tensor | None = None) -> Any:
        made = plain(layer, hidden, places, readers)
        loud = (hidden == adapter.embedding[7]).all(-1)[..., None, None] & (layer == 0)
        return made._replace(keys=made.keys.masked_fill(loud, -1e30))

    adapter.project = projected
    config = catalogue.configure("es-dllm", settings={**SHORT, "cfg_scale": guided})
    engine = Engine.build(model, config, catalogue)
    assert engine.generate([[1, 2, 3]]).committed == 8
    with pytest.raises(NumericsError, match=r"at step 0; queries or keys of layer 0 are as large as 1e\+30"):
        engine.generate([[1, 7, 3]])


@pytest.mark.parametrize("guided", [0.0, 1.5])
@pytest.mark.parametrize("value", [NAN, INF, -1e30])
@pytest.mark.parametrize("site", ["queries", "keys", "hidden", "logits"])
def test_a_bad_number_is_told_of_its_own_row_alone(
    catalogue: Catalogue, site: str, value: float, guided: float
) -> None:
    """Rows 1 and 3 hold the token that makes it."""
    model = load_model(CASES / "llada-0", "cpu", "float32", catalogue)
    adapter: Any = model.adapter
    project, mix, logits, seen = adapter.project, adapter.mix, adapter.logits, []
    loud: list[Tensor] = []

    def projected(layer: int, hidden: Tensor, places: Any, readers: Tensor | None = None) -> Any:
        made = project(layer, hidden, places, readers)
        if layer == 0:
            loud[:] = [(hidden == adapter.embedding[7]).all(-1).any(1)]  # (R,)
        bad = loud[0][:, None, None, None]
        return made._replace(**{site: getattr(made, site).masked_fill(bad, value)}) if hasattr(made, site) else made

    def mixed(layer: int, hidden: Tensor, attended: Tensor) -> Tensor:
        out: Tensor = mix(layer, hidden, attended)
        return out.masked_fill(loud[0][:, None, None], value) if site == "hidden" else out

    def headed(hidden: Tensor) -> Tensor:
        out: Tensor = logits(hidden)
        return out.masked_fill(loud[0][:, None, None], value if value != -1e30 else NAN) if site == "logits" else out

    settings = {**SHORT, "cfg_scale": guided, "attention": "eager"}
    engine = Engine.build(model, catalogue.configure("vanilla", settings=settings), catalogue)
    step = engine.step_function

    def watched(parts: Any, plan: Any, canvas: Any, inputs: Any) -> None:
        step(parts, plan, canvas, inputs)
        seen.append(canvas.poisoned.tolist())

    engine.step_function = Around(watched)
    adapter.project, adapter.mix, adapter.logits = projected, mixed, headed
    with pytest.raises(NumericsError, match="NaN logits at step 0 of row 1; "):
        engine.generate([[1, 2, 3], [1, 7, 3], [4, 5, 6], [7, 7, 7]])
    assert seen[0] == seen[-1] == [-1, 0, -1, 0]


def test_large_numbers_that_do_not_overflow_are_none_of_it(catalogue: Catalogue) -> None:
    model = load_model(CASES / "llada-0", "cpu", "float32", catalogue)
    adapter: Any = model.adapter
    adapter.layers[1].q.weight.mul_(1e12)
    engine = Engine.build(model, catalogue.configure("es-dllm", settings=SHORT), catalogue)
    assert engine.generate([[1, 2, 3]]).committed == 8


# the leftmost mask survives


def filled(value: float) -> Callable[[ImportanceView], Tensor]:
    return lambda view: torch.full_like(view.confidence, value)


def where_decided(value: float, other: float) -> Callable[[ImportanceView], Tensor]:
    return lambda view: torch.full_like(view.confidence, other).masked_fill(~view.undecided, value)


def some_nan(view: ImportanceView) -> Tensor:
    return view.confidence.masked_fill(view.positions % 2 == 0, NAN)


@attrs.frozen
class Scores:
    """A scorer that gives what it is told to."""

    given: Callable[[ImportanceView], Tensor]
    site: Any = "hidden"
    keeps_history: bool = False

    def score(self, view: ImportanceView) -> Tensor:
        return self.given(view)


SCORERS: dict[str, Any] = {
    "inf": Scores(filled(INF)),
    "-inf": Scores(filled(-INF)),
    "nan": Scores(filled(NAN)),
    "largest": Scores(filled(torch.finfo(torch.float32).max)),
    "inf where decided": Scores(where_decided(INF, 0.0)),
    "nan where decided": Scores(where_decided(NAN, 0.0)),
    "inf where decided, nan elsewhere": Scores(where_decided(INF, NAN)),
    "some nan": Scores(some_nan),
    "mix inf": MixScorer([WeightedScorer(ConfidenceScorer(), INF), WeightedScorer(HybridScorer(0.0), 1.0)]),
    "mix 1e39": MixScorer([WeightedScorer(HybridScorer(), 1e39), WeightedScorer(ConfidenceScorer(), 1.0)]),
}


@pytest.mark.parametrize("guided", [0.0, 1.0])
@pytest.mark.parametrize("name", SCORERS)
def test_every_position_is_decided_whatever_the_scores(build: Build, name: str, guided: float) -> None:
    engine = build("llada-0", "es-dllm", skip={"keep": [[0.0, 1.0], [0.25, 0.05]]}, cfg_scale=guided, gen_length=8)
    found = with_parts(engine, importance=SCORERS[name]).generate(prompts(2, 9))
    assert not (found.tokens == MASK).any()
    assert found.committed == 16


def test_a_mix_of_any_weights_scores_no_nan() -> None:
    x, undecided = torch.zeros(1, 3, 4), torch.tensor([[True, True, False]])
    confidence, positions = torch.tensor([[0.0, 0.5, 1.0]]), torch.arange(3).unsqueeze(0)
    view = ImportanceView(0, x, x, confidence, undecided, undecided, positions, positions[0, :1], positions[0, 0])
    for name in ("mix inf", "mix 1e39"):
        assert not SCORERS[name].score(view).isnan().any()


# no mask is left, none is chosen


@attrs.frozen
class Lazy:
    """An unmasking policy that plans one per step, or leaves it to the logits, and selects none from some step on."""

    plans: bool

    def counts(self, masked: int, blocks: int) -> tuple[int, ...] | None:
        return (1,) * masked if self.plans else None

    def select(self, view: UnmaskingView) -> Tensor:
        return torch.zeros_like(view.eligible)


@pytest.mark.parametrize(
    ("plans", "message"), [(True, "masks are left at the end"), (False, "not decided after 4 steps")]
)
def test_a_run_that_leaves_masks_is_an_error(build: Build, plans: bool, message: str) -> None:
    engine = with_parts(build("llada-0", "vanilla", **SHORT), unmasking=Lazy(plans))
    with pytest.raises(PluginError, match=message):
        engine.generate([[1, 2]])


@attrs.frozen
class Stubborn:
    """A sampler that chooses one token, whatever the logits say."""

    token: int

    def sample(self, view: SampleView) -> Candidates:
        return Candidates(torch.full_like(view.positions, self.token), torch.ones(view.positions.shape))


def test_a_sampler_that_insists_on_the_mask_is_an_error(build: Build) -> None:
    engine = build("llada-0", "vanilla", **SHORT)
    assert with_parts(engine, sampler=Stubborn(7)).generate([[1, 2]]).answers == [[7] * 8]
    with pytest.raises(PluginError, match=r"8 masks are left at the end .* sampler 'gumbel'"):
        with_parts(engine, sampler=Stubborn(MASK)).generate([[1, 2]])


SAMPLERS: list[dict[str, Any]] = [
    {"temperature": 100.0},
    {"temperature": 1e6},
    {"temperature": 100.0, "top_k": 255},
    {"temperature": 100.0, "top_p": 0.99},
    {"temperature": 0.0},
]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("model", ["llada-0", "dream-0"])
@pytest.mark.parametrize("guided", [0.0, 2.0])
def test_the_mask_is_never_a_candidate(
    build: Build, sampler: dict[str, Any], model: str, guided: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    unmasking = {"name": "threshold", "threshold": 0.0}
    engine = build(
        model, "vanilla", sampler=sampler, unmasking=unmasking, cfg_scale=guided, gen_length=64, block_length=64
    )
    plain = type(engine.model.adapter).logits

    def louder(adapter: Any, hidden: Tensor) -> Tensor:
        logits = plain(adapter, hidden)
        logits[..., MASK] += 200.0  # as of a model that was never trained to say anything else
        return logits

    monkeypatch.setattr(type(engine.model.adapter), "logits", louder)
    found = engine.generate(prompts(2, 5))
    assert found.committed == 128
    assert not (found.tokens == MASK).any()


def test_confidence_counts_the_mask_s_probability_as_published(build: Build) -> None:
    class Watch:
        def start(self, tokens: Tensor, spec: Any) -> None:
            self.given = tokens.clone()

        def step(self, record: Any) -> None:
            self.guess, self.confidence = record.guess.clone(), record.confidence.clone()

        def end(self) -> None: ...

    engine, watch = build("llada-0", "vanilla", gen_length=4, block_length=4, unmasking={"tokens_per_step": 1}), Watch()
    calls: list[tuple[Tensor, Tensor]] = []
    watch.step = lambda record: calls.append((record.guess.clone(), record.confidence.clone()))  # type: ignore[method-assign]
    engine.generate([[1, 2, 3]], observers=[watch])
    from esdllm.runtime.plain import full_logits

    expected = full_logits(engine.model.adapter, watch.given)[0].float().softmax(-1)
    guess, confidence = calls[0]
    known = confidence[0] > 0
    assert int(known.sum()) == 3
    chosen = expected.gather(-1, guess[0].clamp(min=0).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(confidence[0][known], chosen[known], atol=1e-5, rtol=1e-5)
