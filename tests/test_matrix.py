"""Every attention backend with every cache store, on both families, padded and not, in every mode: the same answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from typing import Any

import pytest
import torch
from helpers import CASES
from runs import SHORT
from sampling import pairwise

from esdllm import Catalogue, Engine, Generation, Model, describe_model, load_model
from esdllm.measure.doctor import attention_backends
from esdllm.measure.evaluation.statistics import agreement
from esdllm.runtime.components import Components
from esdllm_backends.attention.matmul import MatmulAttention

pytestmark = pytest.mark.no_cover  # whole generations of what other tests cover, which measuring slows by a third
MODES: Mapping[str, Mapping[str, Any]] = {
    "vanilla": {},
    "prefix-cache": {},
    "dual-cache": {},
    "es-dllm": {"refresh": {"prompt_refresh": 8, "block_refresh": 4}},
    "es-dllm-parallel": {"refresh": {"prompt_refresh": 8, "block_refresh": 4}, "unmasking": {"threshold": 0.02}},
}
LOSSY = {"int8": 0.9}
"""stores that change numbers, and the share of a trained model's tokens that stays the same at least"""
OTHERWISE = ("sparse",)
"""stores that make attention read less: an answer of their own, the same with every attention backend"""
NEARLY = 0.9
"""the share of a trained model's tokens that `matmul`, which rounds scores, gives as `sdpa` does, at least"""
NAMES = ["mode", "attention", "store", "family", "padded"]
NEEDS = {"none": ("vanilla",)}
"""stores that serve some modes only"""


def prompts(padded: bool) -> list[list[int]]:
    draw = torch.Generator().manual_seed(7)
    lengths = (12, 5, 9) if padded else (12, 12, 12)
    return [torch.randint(0, 250, (length,), generator=draw).tolist() for length in lengths]


def cells() -> Iterator[tuple[str, str, str]]:
    """Yield mode, attention backend and store, of those that serve on a CPU."""
    catalogue = Catalogue.load()
    for mode in MODES:
        for attention in serving(catalogue):
            for store in catalogue.names("cache"):
                if mode in NEEDS.get(store, MODES):
                    yield mode, attention, store


def everywhere(chosen: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str, str, str, bool]]:
    """Yield cells on both families, padded and not."""
    for cell, family, padded in product(chosen, ("llada", "dream"), (False, True)):
        yield *cell, family, padded


def serving(catalogue: Catalogue) -> list[str]:
    """Return the attention backends that can serve the models here."""
    spec, cpu = describe_model(CASES / "dream-0", catalogue), torch.device("cpu")
    components = Components.resolve(catalogue.configure("es-dllm"), catalogue)
    found = attention_backends(catalogue, components, spec, cpu, torch.float32)
    return [one.name for one in found if not one.problems]


@pytest.fixture(scope="session")
def known() -> dict[Any, Generation]:
    """What eager attention and the plain store gave, by model, mode and prompts."""
    return {}


@pytest.fixture(scope="session")
def trained(catalogue: Catalogue) -> dict[str, Model]:
    """The shipped checkpoints, whose tokens do not hang on a rounding."""
    return {family: load_model(f"tiny-{family}", "cpu", catalogue=catalogue) for family in ("llada", "dream")}


def decode(model: Model, catalogue: Catalogue, mode: str, attention: str, store: str, texts: Any) -> Generation:
    over = {**SHORT, **MODES[mode], "attention": attention, "cache": store}
    engine = Engine.build(model, catalogue.configure(mode, settings=over), catalogue)
    return engine.generate(texts, chat=True)


@pytest.mark.parametrize(NAMES, pairwise(everywhere(cell for cell in cells() if cell[2] not in LOSSY)))
def test_every_backend_and_exact_store_gives_what_eager_and_dense_give(
    mode: str,
    attention: str,
    store: str,
    family: str,
    padded: bool,
    known: dict[Any, Generation],
    catalogue: Catalogue,
    request: pytest.FixtureRequest,
) -> None:
    model = request.getfixturevalue(family)
    oracle = store if store in OTHERWISE else "dense"
    key = (family, mode, oracle, padded)
    if key not in known:
        known[key] = decode(model, catalogue, mode, "eager", oracle, prompts(padded))
    found, expected = decode(model, catalogue, mode, attention, store, prompts(padded)), known[key]
    assert torch.equal(found.tokens, expected.tokens)
    assert found.forwards == expected.forwards


TEXTS = {
    False: ["Sort these numbers: 31, 4, 15.", "Sort these numbers: 8, 40, 25."],
    True: ["Sort these numbers: 31, 4, 15.", "What is 12 + 7?"],
}


@pytest.mark.slow
@pytest.mark.parametrize(NAMES, pairwise(everywhere(cell for cell in cells() if cell[2] in LOSSY)))
def test_every_backend_with_a_lossy_store_says_nearly_what_eager_and_dense_say(
    mode: str,
    attention: str,
    store: str,
    family: str,
    padded: bool,
    known: dict[Any, Generation],
    trained: dict[str, Model],
    catalogue: Catalogue,
) -> None:
    model, key = trained[family], (family, mode, "trained", padded)
    if key not in known:
        known[key] = decode(model, catalogue, mode, "eager", "dense", TEXTS[padded])
    found = decode(model, catalogue, mode, attention, store, TEXTS[padded])
    pairs = list(zip(found.tokens.tolist(), known[key].tokens.tolist(), strict=True))
    assert sum(agreement(mine, theirs) for mine, theirs in pairs) / len(pairs) >= LOSSY[store]


@pytest.mark.slow
@pytest.mark.parametrize(NAMES, pairwise(everywhere(cell for cell in cells() if cell[1] == "sdpa")))
def test_matmul_in_bfloat16_says_nearly_what_sdpa_says(
    mode: str, attention: str, store: str, family: str, padded: bool, trained: dict[str, Model], catalogue: Catalogue
) -> None:
    model = trained[family]
    missing = MatmulAttention().problems(model.spec, torch.device("cpu"), torch.bfloat16)
    if missing:
        pytest.skip("; ".join(missing))
    assert model.adapter.dtype == torch.bfloat16
    found, expected = (decode(model, catalogue, mode, name, store, TEXTS[padded]) for name in ("matmul", attention))
    pairs = list(zip(found.tokens.tolist(), expected.tokens.tolist(), strict=True))
    assert sum(agreement(mine, theirs) for mine, theirs in pairs) / len(pairs) >= NEARLY


def test_the_matrix_holds_every_backend_and_store_that_is_registered(catalogue: Catalogue) -> None:
    found = list(cells())
    assert {store for _, _, store in found} == set(catalogue.names("cache"))
    assert {attention for _, attention, _ in found} >= {"eager", "sdpa"}
    assert {mode for mode, _, _ in found} == set(MODES)
