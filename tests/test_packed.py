"""Weights in oneDNN's own layout: the numbers are those of plain products, and memory is not held twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CASES, write_small
from hypothesis import given
from hypothesis import strategies as st
from lookalikes import dream_config, llada_config, qwen2
from processor import CPU, needs_bfloat16
from torch import Tensor

from esdllm import Catalogue, Engine, Model, from_module, load_model
from esdllm.runtime.plain import full_logits
from esdllm.runtime.run import StepFunction
from esdllm.testing import random_model
from esdllm_models.linear import Dense, Sliced, Split
from esdllm_models.linear.kernels import kernel
from esdllm_models.linear.packed import Packed, packs

TOKENS = torch.randint(0, 250, (2, 13), generator=torch.Generator().manual_seed(0))
FAMILIES = ("llada-0", "dream-0")
CONFIGS = {"wide": llada_config(4), "grouped": llada_config(2), "dream": dream_config()}
pytestmark = pytest.mark.processor
Load = Callable[..., Model]


def drawn(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.fixture(scope="module")
def shallow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of two layers, of which the last is the one that computes some queries alone."""
    folder = tmp_path_factory.mktemp("shallow")
    return {name: write_small(folder / name, CASES / name) for name in FAMILIES}


@pytest.fixture
def dense(catalogue: Catalogue) -> Load:
    """Load or make a model as where nothing is packed."""

    def make(make_it: Callable[..., Model], *words: Any) -> Model:
        return make_it(*words, "cpu", "bfloat16", catalogue, compute="plain")

    return make


@needs_bfloat16
@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=2),
    outputs=st.integers(1, 300),
    inputs=st.integers(1, 300),
    biased=st.booleans(),
)
def test_a_packed_weight_gives_a_plain_one_s_numbers_to_the_bit(
    rows: list[int], outputs: int, inputs: int, biased: bool
) -> None:
    x, weight = drawn(0, *rows, inputs), drawn(1, outputs, inputs)
    bias = drawn(2, outputs) if biased else None
    found, expected = Packed.of(weight, bias)(x), Dense(weight, bias)(x)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.equal(expected)


@needs_bfloat16
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 2, 15, 16, 17, 64, 200, 768])
def test_the_layout_serves_any_number_of_rows(rows: int, biased: bool) -> None:
    x, weight, bias = drawn(0, rows, 512), drawn(1, 768, 512), drawn(2, 768) if biased else None
    assert Packed.of(weight, bias)(x).equal(Dense(weight, bias)(x))


@needs_bfloat16
@pytest.mark.parametrize("biased", [False, True])
def test_rows_that_lie_apart_are_computed_as_in_one_piece(biased: bool) -> None:
    layer = Packed.of(drawn(1, 40, 96), drawn(2, 40) if biased else None)
    apart = drawn(0, 6, 9, 96)[:, ::2]
    assert not apart.is_contiguous()
    assert layer(apart).equal(layer(apart.contiguous()))


@needs_bfloat16
def test_a_packed_weight_holds_a_copy_that_what_it_was_made_of_may_leave() -> None:
    weight, x = drawn(1, 64, 64), drawn(0, 3, 64)
    layer = Packed.of(weight)
    before = layer(x)
    weight.zero_()
    assert layer(x).equal(before)
    assert before.any()


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.float32), ("cpu", torch.float16), ("cuda", torch.bfloat16), ("meta", torch.bfloat16)],
)
def test_nothing_but_bfloat16_on_a_cpu_is_packed(device: str, dtype: torch.dtype) -> None:
    assert not packs(torch.device(device), dtype)


def test_a_torch_without_onednn_packs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not packs(CPU, torch.bfloat16)
    assert isinstance(kernel(None).make(drawn(1, 8, 8), None), Dense)


@needs_bfloat16
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_packed_weights_gives_a_plain_one_s_logits(name: str, catalogue: Catalogue, dense: Load) -> None:
    packed: Any = load_model(CASES / name, "cpu", "bfloat16", catalogue).adapter
    plain: Any = dense(load_model, CASES / name).adapter
    kinds = [(type(one.qkv), type(one.out), type(one.mlp.gate_up), type(one.mlp.down)) for one in packed.layers]
    assert kinds[:-1] == [(Packed,) * 4] * (len(kinds) - 1)
    assert kinds[-1] == (Split, Packed, Packed, Packed)
    assert (type(packed.head), type(plain.head)) == (Packed, Dense)
    assert full_logits(packed, TOKENS).equal(full_logits(plain, TOKENS))


@needs_bfloat16
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_last_layer_computes_some_queries_without_the_rest(
    config: dict[str, Any], catalogue: Catalogue, dense: Load
) -> None:
    packed: Any = random_model(config, "cpu", "bfloat16", catalogue).adapter
    plain: Any = dense(random_model, config).adapter
    last = packed.layers[-1]
    assert isinstance(last.qkv, Split)
    assert last.qkv.parts == (last.q, last.kv)
    assert not any(isinstance(one, Sliced) for one in (last.q, last.kv))
    number, hidden, places = len(packed.layers) - 1, packed.embed(TOKENS), packed.encode(TOKENS)
    for readers in (None, torch.tensor([2, 5, 6])):
        found, expected = (one.project(number, hidden, places, readers) for one in (packed, plain))
        for mine, theirs in zip(found, expected, strict=True):
            assert mine.equal(theirs)


@needs_bfloat16
@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_compiled_step_over_packed_weights_gives_the_same_tokens(
    name: str, catalogue: Catalogue, shallow: dict[str, Path]
) -> None:
    config = catalogue.configure("es-dllm", settings={"gen_length": 2, "block_length": 2})
    engine = Engine.build(load_model(shallow[name], "cpu", "bfloat16", catalogue), config, catalogue)
    torch._dynamo.reset()
    expected = engine.generate([[1, 2, 3]]).tokens
    engine.step_function = StepFunction(True, backend="aot_eager")
    assert engine.generate([[1, 2, 3]]).tokens.equal(expected)


@needs_bfloat16
@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("llada-0", marks=pytest.mark.full), "dream-0"])
def test_a_model_of_packed_weights_compiled_by_inductor_gives_nearly_the_same_logits(
    name: str, catalogue: Catalogue, shallow: dict[str, Path]
) -> None:
    model = load_model(shallow[name], "cpu", "bfloat16", catalogue).adapter
    with torch.inference_mode():
        expected = full_logits(model, TOKENS)
        found = torch.compile(full_logits, fullgraph=True, dynamic=False)(model, TOKENS)
    assert (found - expected).float().norm() < 0.05 * expected.float().norm()


@pytest.mark.parametrize("name", FAMILIES)
def test_where_nothing_is_packed_queries_keys_and_values_are_one_tensor(name: str, dense: Load) -> None:
    adapter: Any = dense(load_model, CASES / name).adapter
    for layer in adapter.layers:
        assert all(isinstance(one, Dense) for one in (layer.qkv, layer.q, layer.kv))
        whole = layer.qkv.weight
        assert layer.q.weight.data_ptr() == whole.data_ptr()
        assert layer.kv.weight.data_ptr() == whole[len(layer.q.weight) :].data_ptr()
        assert len(layer.q.weight) + len(layer.kv.weight) == len(whole)


def test_a_module_that_is_taken_over_stays_as_it_is(catalogue: Catalogue) -> None:
    module: Any = qwen2().bfloat16()
    module.config.model_type = "Dream"
    for key in ("mask_token_id", "eos_token_id", "max_position_embeddings"):
        setattr(module.config, key, dream_config()[key])
    adapter: Any = from_module(module, catalogue=catalogue).adapter
    held = {weight.data_ptr() for weight in module.parameters()}
    for layer in adapter.layers:
        parts = [*layer.qkv.parts, layer.out, *layer.mlp.gate_up.parts, layer.mlp.down]
        assert all(isinstance(part, Dense) and part.weight.data_ptr() in held for part in parts)
