"""Weights in fewer bits: how far the results may be off, and what they depend on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CASES, write_checkpoint, write_small
from hypothesis import given
from hypothesis import strategies as st
from lookalikes import dream_config, llada_config
from processor import needs_fbgemm
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from esdllm import Catalogue, CheckpointError, Engine, LoadPlan, Model, UnavailableError, load_model
from esdllm.checkpoints.loading import describe_weights
from esdllm.cli import main
from esdllm.runtime.plain import full_logits
from esdllm.runtime.run import StepFunction
from esdllm.testing import random_model
from esdllm_models.linear import Dense, Sliced, Split, rounding, weight_only
from esdllm_models.linear.fbgemm import Int8Fbgemm, has_fbgemm
from esdllm_models.linear.int8 import SEVEN_BITS, Int8, Int8Matmul
from esdllm_models.linear.kernels import QUANTIZERS, kernel
from esdllm_models.linear.rounding import GROUP, four_bits, pack_eight, whole_numbers

pytestmark = pytest.mark.processor
KINDS = list(QUANTIZERS)
INT8 = [Int8, Int8Matmul, pytest.param(Int8Fbgemm, marks=needs_fbgemm)]
TOKENS = torch.randint(0, 250, (2, 13), generator=torch.Generator().manual_seed(0))
TINY = {"gen_length": 8, "block_length": 4}


def serving(kind: str | None) -> str:
    """The dtype that a kind serves here."""
    return "bfloat16" if kind == "int4-weight-only" else "float32"


def load(name: str | Path, kind: str | None, catalogue: Catalogue, dtype: str | None = None) -> Model:
    return load_model(CASES / name, "cpu", dtype or serving(kind), catalogue, quantize=kind)


def drawn(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def in_bits(kind: Any, bits: int, weight: Tensor, bias: Tensor) -> Any:
    """A layer whose inputs are kept to 7 bits, or to as many as this processor adds up right."""
    with pytest.MonkeyPatch.context() as patched:
        if bits == 7:
            patched.setattr("esdllm_models.linear.int8.int8_is_exact", lambda: False)
        layer = kind.of(weight, bias)
    assert layer.most == SEVEN_BITS or bits == 8
    return layer


@st.composite
def products(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, weights and biases of many sizes and scales."""
    rows, outputs, seed = draw(st.integers(1, 40)), draw(st.integers(1, 50)), draw(st.integers(0, 2**31))
    inputs = GROUP * draw(st.integers(1, 4))
    x = drawn(seed, rows, inputs) * 10.0 ** draw(st.integers(-4, 4))
    x[0, seed % inputs] *= draw(st.sampled_from([0.0, 1.0, 100.0]))
    return x, drawn(seed + 1, outputs, inputs) * 10.0 ** draw(st.integers(-3, 2)), drawn(seed + 2, outputs)


@given(products())
@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("kind", INT8)
def test_int8_is_off_by_half_a_step_of_each_number_at_most(
    kind: Any, bits: int, product: tuple[Tensor, Tensor, Tensor]
) -> None:
    """With x and w each off by half their step: |x| dw + |w| dx + dx dw, summed over the inputs."""
    x, weight, bias = product
    layer = in_bits(kind, bits, weight, bias)
    dx, dw = x.abs().amax(1, keepdim=True) / (2 * layer.most), weight.abs().amax(1) / 254
    bound = x.abs().sum(1, keepdim=True) * dw + weight.abs().sum(1) * dx + x.shape[1] * dx * dw
    exact = x.double() @ weight.double().t() + bias
    assert ((layer(x) - exact).abs() <= 1.001 * bound + 1e-5 * exact.abs() + 1e-6).all()


@given(products())
def test_int8_weight_only_is_off_by_half_a_step_of_each_weight_at_most(product: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias = product
    bound = x.abs().sum(1, keepdim=True) * weight.abs().amax(1) / 254
    exact = x.double() @ weight.double().t() + bias
    found = kernel("int8-weight-only").make(weight, bias)(x)
    assert (
        (found - exact).abs() <= 1.001 * bound + 1e-5 * x.abs().sum(1, keepdim=True) * weight.abs().amax() + 1e-6
    ).all()


@pytest.mark.parametrize("outputs", [16, 20000])
@pytest.mark.parametrize("rows", [1, 500])
def test_off_the_cpu_int8_weight_only_starts_three_kernels_whatever_its_size(rows: int, outputs: int) -> None:
    """Where a launch costs more than what a cache saves: weights turned back, product, scale."""
    called: list[str] = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if not func.is_view:
                called.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    x, levels, scale = (
        torch.empty(shape, dtype=dtype, device="meta")
        for shape, dtype in (
            ((rows, 4096), torch.bfloat16),
            ((outputs, 4096), torch.int8),
            ((outputs,), torch.bfloat16),
        )
    )
    with Noting():
        assert weight_only._int8_weight_only(x, levels, scale).shape == (rows, outputs)
    assert called == ["aten::_to_copy", "aten::mm", "aten::mul_"]


@given(products())
def test_a_weight_in_4_bits_is_off_by_half_a_step_and_what_the_middle_is_rounded_by(
    product: tuple[Tensor, Tensor, Tensor],
) -> None:
    weight = product[1]
    levels, ranges = four_bits(weight)
    step, middle = ranges.float().transpose(0, 1).unbind(-1)
    held = (levels.unflatten(1, (-1, GROUP)) - 8) * step[..., None] + middle[..., None]
    off = (held - weight.unflatten(1, (-1, GROUP))).abs()
    assert (off <= (0.51 * step + middle.abs() / 128)[..., None]).all()


@given(products())
def test_int4_weight_only_multiplies_by_what_it_holds(product: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias = (tensor.bfloat16() for tensor in product)
    levels, ranges = four_bits(weight)
    step, middle = ranges.float().transpose(0, 1).unbind(-1)
    held = ((levels.unflatten(1, (-1, GROUP)) - 8) * step[..., None] + middle[..., None]).flatten(1)
    found = kernel("int4-weight-only").make(weight, bias)(x).float()
    exact = x.float() @ held.t() + bias.float()
    assert ((found - exact).abs() <= 0.02 * (x.float().abs() @ held.abs().t()) + 0.01 * bias.float().abs() + 1e-6).all()


@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("kind", INT8)
def test_all_int8_kernels_compute_the_same(kind: Any, bits: int) -> None:
    x, weight, bias = drawn(0, 3, 7, 100), drawn(1, 30, 100), drawn(2, 30)
    layer = in_bits(kind, bits, weight, bias)
    whole, step = whole_numbers(x, layer.most)
    levels, scale = pack_eight(weight)
    expected = (whole.double() @ levels.double().t()) * scale * step + bias
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", INT8)
@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_row_in_int8_does_not_depend_on_the_rows_beside_it(kind: Any, bits: int, dtype: torch.dtype) -> None:
    x, layer = drawn(0, 3, 70, 96).to(dtype), in_bits(kind, bits, drawn(1, 40, 96).to(dtype), drawn(2, 40).to(dtype))
    together = layer(x)
    assert together.dtype == dtype
    for row, place in ((0, 0), (1, 69), (2, 33)):
        assert layer(x[row, place]).equal(together[row, place])
    assert layer(x[:, ::3]).equal(together[:, ::3])


@pytest.mark.parametrize("kind", ["int8-weight-only", "int4-weight-only"])
def test_a_row_under_weights_alone_is_the_same_in_any_batch_but_for_rounding(kind: str) -> None:
    x, layer = drawn(0, 70, 96).bfloat16(), QUANTIZERS[kind].make(drawn(1, 40, 96).bfloat16(), None)
    together = layer(x)
    for rows in (1, 5, 16, 17, 32):
        torch.testing.assert_close(layer(x[:rows]), together[:rows], atol=0.1, rtol=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_the_same_however_it_is_cut_while_it_is_quantised(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    x, weight = drawn(0, 4, 64).bfloat16(), drawn(1, 200, 64).bfloat16()
    whole = QUANTIZERS[kind].make(weight, None)(x)
    monkeypatch.setattr(rounding, "_CHUNK", 64 * 64)
    assert QUANTIZERS[kind].make(weight, None)(x).equal(whole)


def test_zeros_stay_zeros_and_what_is_not_finite_is_not_hidden() -> None:
    layer = Int8.of(drawn(0, 8, 32))
    x = torch.zeros(4, 32)
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    made = layer(x)
    assert (made[[0, 3]] == 0).all()
    assert not made[1:3].isfinite().any()
    assert made[1].isnan().all()
    assert not Int8.of(torch.zeros(8, 32))(drawn(1, 2, 32)).any()


@pytest.mark.parametrize("name", ["llada-0", "dream-0"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_s_logits_are_near_the_full_one_s(catalogue: Catalogue, name: str, kind: str) -> None:
    full = full_logits(load(name, None, catalogue, "float32").adapter, TOKENS)
    off = full_logits(load(name, kind, catalogue).adapter, TOKENS).float() - full
    assert 0 < off.norm() / full.norm() < (0.6 if kind == "int4-weight-only" else 0.15)


@pytest.mark.parametrize("name", ["llada-0", "dream-0"])
@pytest.mark.parametrize("kind", KINDS)
def test_loading_twice_gives_the_same_model(catalogue: Catalogue, name: str, kind: str) -> None:
    one, other = (full_logits(load(name, kind, catalogue).adapter, TOKENS) for _ in range(2))
    assert one.equal(other)


@pytest.mark.parametrize("kind", [None, *KINDS])
def test_queries_of_some_positions_are_those_among_all(catalogue: Catalogue, kind: str | None) -> None:
    model = load("dream-0", kind, catalogue).adapter
    hidden, places, readers = model.embed(TOKENS), model.encode(TOKENS), torch.tensor([2, 5, 6])
    whole, part = model.project(0, hidden, places), model.project(0, hidden, places, readers)
    close = {"atol": 0.05, "rtol": 0.05} if kind == "int4-weight-only" else {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(part.queries, whole.queries[:, readers], **close)
    torch.testing.assert_close(part.keys, whole.keys, **close)
    torch.testing.assert_close(part.values, whole.values, **close)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_row_in_fewer_bits_is_the_row_alone(catalogue: Catalogue, kind: str) -> None:
    engine = Engine.build(load("llada-0", kind, catalogue), catalogue.configure("dual-cache", settings=TINY), catalogue)
    together = engine.generate([[1, 2, 3], [4, 5]]).answers
    assert together == [engine.generate([row]).answers[0] for row in ([1, 2, 3], [4, 5])]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_compiled_step_gives_the_same_tokens(catalogue: Catalogue, kind: str, tmp_path: Path) -> None:
    model = load(write_small(tmp_path / "small", CASES / "llada-0"), kind, catalogue)
    engine = Engine.build(model, catalogue.configure("es-dllm", settings={**TINY, "gen_length": 2}), catalogue)
    expected = engine.generate([[1, 2, 3]]).tokens
    engine.step_function = StepFunction(True, backend="aot_eager")
    assert engine.generate([[1, 2, 3]]).tokens.equal(expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_compiled_by_inductor_gives_nearly_the_same_logits(
    catalogue: Catalogue, kind: str, tmp_path: Path
) -> None:
    model = load(write_small(tmp_path / "small", CASES / "dream-0", layers=1), kind, catalogue).adapter
    with torch.inference_mode():
        expected = full_logits(model, TOKENS)
        found = torch.compile(full_logits, fullgraph=True, dynamic=False)(model, TOKENS)
    assert (found - expected).float().norm() < 0.05 * expected.float().norm()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(None, "bfloat16"), (None, "float32")] + [(kind, serving(kind)) for kind in KINDS],
)
@pytest.mark.parametrize("config", [llada_config(4), llada_config(2), dream_config()], ids=["wide", "grouped", "dream"])
def test_the_bytes_that_are_told_are_those_of_the_tensors(
    catalogue: Catalogue, tmp_path: Path, kind: str | None, dtype: str, config: dict[str, Any]
) -> None:
    sizes = {"mlp_hidden_size": 64, "intermediate_size": 64}
    config = {**config, **{key: value for key, value in sizes.items() if key in config}}
    adapter: Any = random_model(config, "cpu", dtype, catalogue, quantize=kind).adapter
    parts = [*adapter.layers, (adapter.embedding, adapter.norm, adapter.head)]
    held: dict[int, Tensor] = {}
    for part in parts:
        for one in flat(part):
            for x in [one] if isinstance(one, Tensor) else vars_of(one):
                held[id(x) if x.is_mkldnn else x.data_ptr()] = x
    biases = 0 if "d_model" in config else 3 * 64 * (4 if kind == "int8" else 0)  # int8 holds them in float32
    write_checkpoint(tmp_path, config, {})
    told = describe_weights(tmp_path, dtype, kind, catalogue)
    assert (told.dtype, told.spec) == (adapter.dtype, adapter.spec)
    assert sum(x.nelement() * x.element_size() for x in held.values()) == pytest.approx(told.bytes, abs=biases)


def flat(part: Any) -> Iterator[Any]:
    """The tensors and linear layers of a layer."""
    for one in part:
        if isinstance(one, tuple):
            yield from flat(one)
        elif one is not None:
            yield one


def vars_of(layer: Any) -> list[Tensor]:
    """The tensors of a linear layer that no other holds."""
    if isinstance(layer, Sliced):
        return []
    if isinstance(layer, Split):
        return [x for part in layer.parts for x in vars_of(part)]
    found = [getattr(layer, name) for name in layer.__slots__ if name != "__weakref__"]
    if isinstance(layer, Int8Fbgemm):
        found += unpacked(layer)
    return [x for x in found if isinstance(x, Tensor)] if not is_view(layer) else []


@cache
def unpacked(layer: Int8Fbgemm) -> list[Tensor]:
    """What FBGEMM holds: the whole numbers; steps, zeros and sums of its columns."""
    weight = layer.packed.unpack()[0]
    return [weight.int_repr(), torch.empty(3 * len(weight))]


def is_view(layer: Any) -> bool:
    return isinstance(layer, Dense) and layer.weight._base is not None


@pytest.mark.parametrize("name", ["llada-0", "dream-0"])
def test_an_unknown_kind_is_named_with_those_that_are_known(catalogue: Catalogue, name: str) -> None:
    known = "known: int8, int8-weight-only, int4-weight-only"
    with pytest.raises(UnavailableError, match=f"the quantisation 'int9' is not available for .*; {known}"):
        load_model(CASES / name, "cpu", catalogue=catalogue, quantize="int9")


def test_a_kind_that_cannot_serve_gives_all_its_reasons(catalogue: Catalogue) -> None:
    config = {**llada_config(4), "d_model": 40, "mlp_hidden_size": 48}
    with pytest.raises(UnavailableError) as caught:
        random_model(config, "cpu", "float16", catalogue, quantize="int4-weight-only")
    message = str(caught.value)
    assert "computes in bfloat16, not in float16; pass dtype bfloat16" in message
    assert "the weight 'qkv' has 40 inputs, which do not divide by 32" in message
    assert "the weight 'down' has 48 inputs" in message
    with pytest.raises(UnavailableError, match="its kernels are for cpu and cuda, not for meta"):
        load_model(CASES / "llada-0", "meta", catalogue=catalogue, quantize="int8")


@pytest.mark.parametrize("name", ["llada-0", "dream-0"])
def test_a_processor_whose_sums_overflow_is_served_with_inputs_in_7_bits(
    name: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = full_logits(load(name, None, catalogue).adapter, TOKENS)
    monkeypatch.setattr("esdllm_models.linear.int8.int8_is_exact", lambda: False)
    monkeypatch.setattr("esdllm_models.linear.kernels.int8_is_exact", lambda: False)
    model: Any = load(name, "int8", catalogue).adapter
    assert model.head.most == SEVEN_BITS
    assert isinstance(model.head, Int8Fbgemm if has_fbgemm() else Int8)
    assert 0 < (full_logits(model, TOKENS) - full).norm() / full.norm() < 0.2


@pytest.mark.parametrize("inputs", [2, 64, 100, 512, 4096])
@pytest.mark.parametrize("kind", INT8)
def test_int8_adds_the_largest_products_up_right_everywhere(kind: Any, inputs: int) -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(inputs // 2)
    weight = 127 * torch.stack(
        [signs.abs(), -signs.abs(), signs]
    )  # a step of 1, so that whole numbers stay what they are
    layer = kind.of(weight)
    x = weight * layer.most / 127
    assert layer(x).double().equal(x.double() @ weight.double().t())


@pytest.mark.parametrize("rows", [0, 1, 33])
@pytest.mark.parametrize("kind", INT8)
def test_int8_serves_any_number_of_rows(kind: Any, rows: int) -> None:
    assert kind.of(drawn(0, 20, 64))(drawn(1, rows, 64)).shape == (rows, 20)


def test_a_family_without_quantisation_or_random_weights_says_so() -> None:
    plan = LoadPlan(torch.float32, torch.device("cpu"), quantize="int8")
    with pytest.raises(UnavailableError, match="the quantisation 'int8' is not available for Mine; none is"):
        plan.only("Mine")
    plan.only("Mine", quantize=("int8",))
    with pytest.raises(UnavailableError, match="Mine makes no random weights"):
        LoadPlan(torch.float32, torch.device("cpu"), seed=1).only("Mine")


def test_random_weights_are_those_of_their_seed(catalogue: Catalogue) -> None:
    config = llada_config(4)
    one, same, other = (
        full_logits(random_model(config, "cpu", "float32", catalogue, seed=seed).adapter, TOKENS) for seed in (1, 1, 2)
    )
    assert one.equal(same)
    assert (one - other).abs().max() > 0.1
    assert 0.2 < one.std() < 5


def test_geometries_are_known_by_name(catalogue: Catalogue) -> None:
    with pytest.raises(
        CheckpointError, match=r"no geometry 'llada-9b'; did you mean 'llada-8b'\? known: a2d-.*, dream-7b, .*llada-8b"
    ):
        random_model("llada-9b", "cpu", catalogue=catalogue)
    with pytest.raises(CheckpointError, match="the geometry: the model_type 'gpt' is not implemented"):
        random_model({"model_type": "gpt"}, "cpu", catalogue=catalogue)


WEIGHTS = [
    ("llada-8b", 8.02),
    ("dream-7b", 7.62),
    ("a2d-qwen3-0.6b", 0.60),
    ("a2d-qwen2-0.5b", 0.49),
    ("sdar-4b", 4.41),
    ("sdar-8b", 8.19),
    ("fast-dllm-v2-7b", 7.62),
    ("llada2-mini", 16.26),
    ("llada-moe-7b", 7.36),
    ("nemotron-labs-diffusion-8b", 8.49),
    ("rnd1-30b", 30.53),
    ("illada-8b", 7.62),  # the others' 8 billion count its tied head twice
    ("stable-diffcoder-8b", 8.25),
]
"""billions of weights"""


@pytest.mark.parametrize(("name", "billions"), WEIGHTS)
def test_a_geometry_has_as_many_weights_as_its_name_says(catalogue: Catalogue, name: str, billions: float) -> None:
    family = next(one for one in families(catalogue) if name in one.geometries)
    plan = LoadPlan(torch.float32, torch.device("cpu"))
    assert family.weight_bytes(family.geometries[name], plan) / 4e9 == pytest.approx(billions, abs=0.05)


def families(catalogue: Catalogue) -> list[Any]:
    from esdllm.config import ComponentConfig

    return [catalogue.build("model", ComponentConfig(name)) for name in catalogue.names("model")]


def test_a_command_holds_weights_as_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--model", str(CASES / "llada-0"), "--quantize"]
    assert main(["generate", "hello", *common, "int9"]) != 0
    assert "the quantisation 'int9' is not available" in capsys.readouterr().err
    arguments = [
        "eval",
        "--model",
        "tiny-llada",
        "--quantize",
        "int8-weight-only",
        "-p",
        "vanilla",
        "--count",
        "1",
        "--json",
    ]
    assert main([*arguments, "--gen-length", "4", "--block-length", "4", "--task", "lists"]) == 0
    assert json.loads(capsys.readouterr().out)["environment"]["quantize"] == "int8-weight-only"


@pytest.mark.parametrize("command", ["generate", "eval", "tune", "analyze"])
def test_every_command_that_loads_takes_the_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    assert "--quantize" in capsys.readouterr().out
