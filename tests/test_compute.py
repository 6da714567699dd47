"""Kernels of linear layers in full: what each rounds, what it needs, and that a model decodes under any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CASES, write_checkpoint, write_small
from hypothesis import given
from hypothesis import strategies as st
from lookalikes import dream_config, llada_config
from processor import CPU, needs_bfloat16, needs_fbgemm
from torch import Tensor

from esdllm import Catalogue, Engine, LoadPlan, Model, UnavailableError, load_model
from esdllm.checkpoints.loading import describe_weights
from esdllm.cli import main
from esdllm.runtime.plain import full_logits
from esdllm.runtime.run import StepFunction
from esdllm.testing import random_model
from esdllm_models.linear.fbgemm import Float16, _layers, float16_bytes
from esdllm_models.linear.kernels import COMPUTES, kernel
from esdllm_models.linear.pieces import Pieces

pytestmark = pytest.mark.processor
MARKS = {"fp16": needs_fbgemm, "packed": needs_bfloat16}
NAMES = [pytest.param(name, marks=MARKS.get(name, ())) for name in COMPUTES]
WIDENING = [pytest.param("pieces"), pytest.param("fp16", marks=needs_fbgemm)]
TOKENS = torch.randint(0, 250, (2, 13), generator=torch.Generator().manual_seed(0))
TINY = {"gen_length": 8, "block_length": 4}


def drawn(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def load(name: str | Path, compute: str | None, catalogue: Catalogue, dtype: str = "bfloat16") -> Model:
    return load_model(CASES / name, "cpu", dtype, catalogue, compute=compute)


@given(
    rows=st.lists(st.integers(0, 20), min_size=0, max_size=2),
    outputs=st.integers(1, 600),
    inputs=st.integers(1, 600),
    biased=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
)
@pytest.mark.parametrize("name", WIDENING)
def test_a_bfloat16_weight_is_multiplied_in_float32_and_loses_nothing(
    name: str, rows: list[int], outputs: int, inputs: int, biased: bool, scale: float
) -> None:
    weight = (drawn(0, outputs, inputs).clamp(-4, 4) * scale).bfloat16()
    weight[weight.abs() < 2**-14] = 0  # below which float16 has fewer bits than bfloat16
    x, bias = drawn(1, *rows, inputs), drawn(2, outputs) if biased else None
    exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    found = COMPUTES[name].make(weight, bias)(x)
    assert found.dtype == torch.float32
    size = x.double().abs() @ weight.double().abs().t() + (0 if bias is None else bias.double().abs())
    assert ((found - exact).abs() <= 1e-5 * size + 1e-30).all()


@needs_fbgemm
def test_float16_is_off_by_2_to_the_minus_25_below_its_range_and_by_2_to_the_minus_11_of_a_float32_weight() -> None:
    eye = torch.eye(64)
    small, full = (drawn(0, 64, 64) * 2**-18).bfloat16().float(), drawn(1, 64, 64)
    assert (Float16.of(small)(eye).t() - small).abs().max() <= 2**-25
    assert ((Float16.of(full)(eye).t() - full).abs() <= 2**-11 * full.abs() + 2**-25).all()


@needs_fbgemm
@pytest.mark.parametrize("value", [65536.0, -1e6, float("inf"), float("nan")])
@pytest.mark.parametrize("place", [0, 33, -1])
def test_a_matrix_with_a_weight_beyond_float16_is_multiplied_in_pieces_and_loses_nothing(
    value: float, place: int
) -> None:
    weight, x = drawn(0, 70, 8).bfloat16(), drawn(1, 5, 8)
    weight[place, 3] = value
    layer = COMPUTES["fp16"].make(weight, None)
    assert isinstance(layer, Pieces)
    torch.testing.assert_close(layer(x), x @ weight.float().t(), equal_nan=True, rtol=1e-4, atol=1.0)


@needs_fbgemm
def test_the_largest_weights_of_float16_are_served() -> None:
    weight = torch.full((3, 5), 65504.0)
    layer = COMPUTES["fp16"].make(weight, None)
    assert isinstance(layer, Float16)
    assert layer(torch.eye(5)).equal(weight.t())


@needs_fbgemm
def test_what_fbgemm_holds_goes_with_its_layer() -> None:
    layer = Float16.of(drawn(0, 8, 8))
    number = layer.number
    assert _layers[number] is layer
    del layer
    assert number not in _layers


@needs_fbgemm
def test_another_engine_of_torch_s_quantisation_stays_chosen() -> None:
    before = torch.backends.quantized.engine
    Float16.of(drawn(0, 8, 8))
    assert torch.backends.quantized.engine == before


@pytest.mark.parametrize("name", WIDENING)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_that_lie_apart_are_computed_as_in_one_piece(name: str, dtype: torch.dtype) -> None:
    layer, apart = COMPUTES[name].make(drawn(1, 300, 96).to(dtype), drawn(2, 300)), drawn(0, 6, 9, 96)[:, ::2]
    assert layer(apart).equal(layer(apart.contiguous()))
    assert layer(apart[0, 0]).shape == (300,)


def test_part_of_a_matrix_in_pieces_is_computed_from_the_same_memory(catalogue: Catalogue) -> None:
    layer = load("dream-0", "pieces", catalogue).adapter.layers[0]  # type: ignore[attr-defined]
    assert all(isinstance(one, Pieces) for one in (layer.qkv, layer.q, layer.kv))
    assert layer.q.weight.data_ptr() == layer.qkv.weight.data_ptr()


@pytest.mark.parametrize("name", ["llada-0", "dream-0"])
@pytest.mark.parametrize("compute", WIDENING)
def test_a_bfloat16_checkpoint_s_logits_are_those_of_its_weights_in_float32(
    name: str, compute: str, catalogue: Catalogue
) -> None:
    """Where its weights are rounded to bfloat16 first."""
    model, plain = load(name, compute, catalogue).adapter, load(name, "plain", catalogue, "float32").adapter
    rounded: Any = plain
    for layer in rounded.layers:
        for linear in (layer.qkv, layer.out, layer.mlp.gate_up, layer.mlp.down):
            linear.weight.copy_(linear.weight.bfloat16())
    rounded.head.weight.copy_(rounded.head.weight.bfloat16())
    rounded.embedding.copy_(rounded.embedding.bfloat16())
    assert model.dtype == torch.float32
    found, expected = full_logits(model, TOKENS), full_logits(plain, TOKENS)
    assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("config", [llada_config(4), llada_config(2), dream_config()], ids=["wide", "grouped", "dream"])
@pytest.mark.parametrize(("compute", "dtype"), [("pieces", "bfloat16"), ("pieces", "float32"), ("plain", "bfloat16")])
def test_the_bytes_that_are_told_are_those_of_the_tensors(
    compute: str, dtype: str, config: dict[str, Any], catalogue: Catalogue, tmp_path: Path
) -> None:
    adapter: Any = random_model(config, "cpu", dtype, catalogue, compute=compute).adapter
    held: dict[int, int] = {}
    for part in [*adapter.layers, (adapter.embedding, adapter.norm, adapter.head)]:
        for one in part:
            linears = (one.gate_up, one.down) if hasattr(one, "gate_up") else (one,)
            for x in linears:
                for tensor in (x,) if x is None or isinstance(x, Tensor) else (x.weight, x.bias):
                    if tensor is not None and tensor._base is None:
                        held[tensor.data_ptr()] = tensor.nbytes
    write_checkpoint(tmp_path, config, {})
    told = describe_weights(tmp_path, dtype, None, catalogue, compute=compute)
    assert (told.dtype, sum(held.values())) == (adapter.dtype, told.bytes)


def test_fp16_holds_two_bytes_a_weight_of_whole_blocks() -> None:
    for outputs, inputs in ((4096, 4096), (12288, 4096), (126464, 4096), (18944, 3584)):
        assert float16_bytes(outputs, inputs) == 2 * outputs * inputs
    assert float16_bytes(1, 1) == 2 * 32 * 512


@pytest.mark.parametrize("compute", NAMES)
def test_a_batch_row_is_the_row_alone(compute: str, catalogue: Catalogue) -> None:
    engine = Engine.build(
        load("llada-0", compute, catalogue), catalogue.configure("dual-cache", settings=TINY), catalogue
    )
    together = engine.generate([[1, 2, 3], [4, 5]])
    assert together.compute == compute
    assert together.answers == [engine.generate([row]).answers[0] for row in ([1, 2, 3], [4, 5])]


@pytest.mark.slow
@pytest.mark.parametrize("compute", NAMES)
def test_a_compiled_step_gives_the_same_tokens(compute: str, catalogue: Catalogue, tmp_path: Path) -> None:
    model = load(write_small(tmp_path / "small", CASES / "llada-0"), compute, catalogue)
    engine = Engine.build(model, catalogue.configure("es-dllm", settings={**TINY, "gen_length": 2}), catalogue)
    expected = engine.generate([[1, 2, 3]]).tokens
    engine.step_function = StepFunction(True, backend="aot_eager")
    assert engine.generate([[1, 2, 3]]).tokens.equal(expected)


@pytest.mark.parametrize("compute", WIDENING)
def test_experts_are_held_as_they_are_and_multiplied_in_float32(compute: str) -> None:
    from esdllm_models.grouped import Stacked

    weight, rows = drawn(0, 3, 40, 64).bfloat16(), drawn(1, 5, 64)
    stacked = Stacked.of(weight, compute)
    assert [part.dtype for part in stacked.weights] == [torch.bfloat16]
    torch.testing.assert_close(stacked.every(rows), rows @ weight.float().transpose(1, 2), atol=1e-4, rtol=1e-4)


def test_what_cannot_serve_says_why(catalogue: Catalogue) -> None:
    with pytest.raises(
        UnavailableError, match=r"the compute 'fp8' is not available for .*; known: plain, packed, pieces, fp16"
    ):
        load("llada-0", "fp8", catalogue)
    with pytest.raises(
        UnavailableError, match="compute 'packed' cannot serve here: it needs a CPU with instructions that"
    ):
        load("llada-0", "packed", catalogue, "float32")
    for compute in ("pieces", "fp16"):
        with pytest.raises(
            UnavailableError, match=f"compute '{compute}' cannot serve here: its kernels are for cpu, not"
        ):
            load_model(CASES / "llada-0", "meta", catalogue=catalogue, compute=compute)
    with pytest.raises(
        UnavailableError, match="compute 'plain' is for weights in full, and quantize 'int8' has a kernel of its"
    ):
        load_model(CASES / "llada-0", "cpu", catalogue=catalogue, compute="plain", quantize="int8")
    with pytest.raises(UnavailableError, match="the compute 'plain' is not available for Mine; none is"):
        LoadPlan(torch.float32, CPU, compute="plain").only("Mine")


def test_a_torch_without_fbgemm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esdllm_models.linear.kernels.has_fbgemm", lambda: False)
    assert kernel("fp16").problems(CPU, torch.bfloat16) == ["this torch comes without FBGEMM, which is for x86"]


def test_a_command_computes_as_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["generate", "hello", "--model", str(CASES / "llada-0"), "--compute"]
    assert main([*common, "fp8"]) == 2
    assert "the compute 'fp8' is not available" in capsys.readouterr().err
    assert main(["doctor", "--model", str(CASES / "llada-0"), "--compute", "pieces"]) in (0, 1)
    assert "pieces  serves" in capsys.readouterr().out
