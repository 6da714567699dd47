"""The laws of attention backends, and the choice among them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import pytest
import torch
from helpers import CASES, offers, write_small
from hypothesis import given
from hypothesis import strategies as st
from oracle import attention
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esdllm import Catalogue, Engine, KeyValue, Model, ModelSpec, describe_model, load_model
from esdllm.cli import main
from esdllm.config import ComponentConfig
from esdllm.errors import ConfigError, PluginError, UnavailableError
from esdllm.plugins.auto import choose_attention
from esdllm.runtime.run import StepFunction
from esdllm_backends.attention import flex as flex_module
from esdllm_backends.attention import matmul as matmul_module
from esdllm_backends.attention import parts as parts_module
from esdllm_backends.attention import triton as triton_module
from esdllm_backends.attention import xformers as xformers_module
from esdllm_backends.attention.eager import EagerAttention
from esdllm_backends.attention.flex import FlexAttention
from esdllm_backends.attention.matmul import MatmulAttention
from esdllm_backends.attention.sdpa import SdpaAttention
from esdllm_backends.attention.triton import TritonAttention
from esdllm_backends.attention.xformers import XformersAttention

pytestmark = pytest.mark.processor
CATALOGUE = Catalogue.load()
SPEC = describe_model(CASES / "dream-0", CATALOGUE)
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
BACKENDS = {name: CATALOGUE.build("attention", ComponentConfig(name)) for name in CATALOGUE.names("attention")}
HERE = [name for name, backend in BACKENDS.items() if not backend.problems(SPEC, CPU, torch.float32)]
LAWFUL = [*HERE, "matmul"]
"""those that obey the laws in float32; `matmul` refuses it for its speed alone"""
_MISSING = MatmulAttention().problems(SPEC, CPU, torch.bfloat16)
in_bfloat16 = pytest.mark.skipif(bool(_MISSING), reason=f"matmul: {'; '.join(_MISSING)}")
Attend = Callable[[Tensor, KeyValue], Tensor]


class Case(NamedTuple):
    queries: Tensor
    read: KeyValue


def case(
    rows: int = 2, window: int = 5, keys: int = 37, groups: int = 2, each: int = 2, dim: int = 16, padding: Any = None
) -> Case:
    """Return R rows of N queries and K keys, the first `padding` of each row's left out."""
    draw = torch.Generator().manual_seed(rows * window * keys)
    queries = torch.randn(rows, window, groups * each, dim, generator=draw)
    made = torch.randn(2, rows, keys, groups, dim, generator=draw)
    bias = None
    if padding is not None:
        bias = torch.zeros(rows, keys).masked_fill(torch.arange(keys) < torch.tensor(padding)[:, None], -math.inf)
    return Case(queries, KeyValue(made[0], made[1], bias, None if padding is None else torch.tensor(padding)))


@st.composite
def cases(draw: st.DrawFn, masked: bool | None = None) -> Case:
    """Draw shapes, and which keys are left out: none, the first of each row, or any but one (as a store that chooses does)."""
    rows, window, keys = draw(st.integers(1, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 40))
    groups, each, dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.sampled_from([4, 16, 20]))
    left = draw(st.none() | st.tuples(*[st.integers(0, keys - 1)] * rows)) if not masked else None
    made = case(rows, window, keys, groups, each, dim, left)
    if left is None and (draw(st.booleans()) if masked is None else masked):
        out = torch.tensor(draw(st.lists(st.booleans(), min_size=rows * keys, max_size=rows * keys))).view(rows, keys)
        out[:, draw(st.integers(0, keys - 1))] = False
        bias = torch.zeros(rows, keys).masked_fill(out, -math.inf)
        made = made._replace(read=made.read._replace(bias=bias))
    return made


@st.composite
def cases_of_blocks(draw: st.DrawFn) -> Case:
    """Draw queries of several blocks: any numbers of blocks, as long as each reads a key that is not left out."""
    made = draw(cases())
    rows, window, keys = *made.queries.shape[:2], made.read.keys.shape[1]
    numbers = st.lists(st.integers(0, 4), min_size=rows * keys, max_size=rows * keys)
    blocks = torch.tensor(draw(numbers)).view(rows, keys)
    read = torch.ones_like(blocks, dtype=torch.bool) if made.read.bias is None else made.read.bias == 0
    least = blocks.masked_fill(~read, 9).amin(1, keepdim=True)
    asking = st.lists(st.integers(0, 4), min_size=rows * window, max_size=rows * window)
    asked = torch.tensor(draw(asking)).view(rows, window).maximum(least)
    return made._replace(read=made.read._replace(query_blocks=asked, key_blocks=blocks))


def row(read: KeyValue, index: int) -> KeyValue:
    """Return one row of what is read."""
    one = slice(index, index + 1)
    return KeyValue(
        read.keys[one],
        read.values[one],
        None if read.bias is None else read.bias[one],
        None if read.padding is None else read.padding[one],
    )


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def formula(queries: Tensor, read: KeyValue) -> Tensor:
    """The oracle's attention, rounded."""
    return attention(queries, read).to(queries.dtype)


def by_head(queries: Tensor, read: KeyValue) -> Iterator[tuple[Any, Tensor, Tensor, Tensor]]:
    """Yield every head of every row, in float64: where it stands in the result, its queries (N, D) over sqrt(D), and the keys
    and values (K', D) that are read.
    """
    each = queries.shape[2] // read.keys.shape[2]
    for row in range(queries.shape[0]):
        seen = slice(None) if read.bias is None else read.bias[row] == 0
        for head in range(queries.shape[2]):
            keys, values = (x[row, seen, head // each].double() for x in (read.keys, read.values))
            place = row, slice(None), head
            yield place, queries[place].double() / math.sqrt(queries.shape[-1]), keys, values


@pytest.mark.parametrize("name", LAWFUL)
@given(case=cases_of_blocks())
def test_a_query_reads_the_blocks_up_to_its_own(name: str, case: Case) -> None:
    close(BACKENDS[name].attend(*case), formula(*case))


@pytest.mark.parametrize("name", ["sdpa", "matmul"])
@pytest.mark.parametrize("padding", [None, (0, 9)], ids=["even", "padded"])
def test_the_mask_of_a_long_prompt_is_made_some_queries_at_a_time(
    name: str, padding: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tensor is larger than the mask of so many pairs, and the answer is that of all at once."""
    queries, read = case(rows=2, window=37, keys=37, padding=padding)
    blocks = torch.arange(37).expand(2, -1) // 4
    read = read._replace(query_blocks=blocks.clamp(min=2), key_blocks=blocks)
    whole = BACKENDS[name].attend(queries, read)
    masks: list[int] = []
    shifts = KeyValue.shifts

    def noted(read: KeyValue) -> Tensor | None:
        made = shifts(read)
        masks.append(0 if made is None else made.numel() * 2)
        return made

    monkeypatch.setattr(KeyValue, "shifts", noted)
    monkeypatch.setattr(parts_module, "_MASKED", 2 * 37 * 2 * 5)
    close(BACKENDS[name].attend(queries, read), whole)
    assert len(masks) == 8
    assert max(masks) <= 2 * 37 * 2 * 5
    close(whole, formula(queries, read))


def test_flex_compares_the_numbers_of_blocks_itself() -> None:
    """Uncompiled, as torch runs it without a GPU: the same scores are changed in the same way."""
    for padding in (None, (0, 6)):
        made = case(rows=2, window=9, keys=17, padding=padding)
        blocks = torch.arange(17).expand(2, -1) // 4
        read = made.read._replace(query_blocks=blocks[:, -9:], key_blocks=blocks)
        inputs = (made.queries, read.keys, read.values, read.bias, read.query_blocks, read.key_blocks)
        close(flex_module._attend(*inputs), formula(made.queries, read))


@pytest.mark.parametrize("name", LAWFUL)
@given(case=cases())
def test_attention_is_the_softmax_of_scaled_products_over_the_keys_that_are_read(name: str, case: Case) -> None:
    close(BACKENDS[name].attend(*case), formula(*case))


@pytest.mark.parametrize("name", LAWFUL)
@given(case=cases())
def test_a_row_alone_attends_as_in_its_batch(name: str, case: Case) -> None:
    together = BACKENDS[name].attend(*case)
    for index in range(together.shape[0]):
        alone = BACKENDS[name].attend(case.queries[index : index + 1], row(case.read, index))
        close(alone, together[index : index + 1])


@pytest.mark.parametrize("name", LAWFUL)
@given(case=cases(), data=st.data())
def test_permuted_rows_attend_permuted(name: str, case: Case, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(case.queries.shape[0])))
    read = [row(case.read, index) for index in order]
    permuted = KeyValue(
        torch.cat([one.keys for one in read]),
        torch.cat([one.values for one in read]),
        None if case.read.bias is None else torch.cat([one.bias for one in read if one.bias is not None]),
        None if case.read.padding is None else case.read.padding[order],
    )
    close(BACKENDS[name].attend(case.queries[order], permuted), BACKENDS[name].attend(*case)[order])


@pytest.mark.parametrize("name", LAWFUL)
@given(case=cases(masked=True))
def test_a_key_that_is_left_out_is_never_read(name: str, case: Case) -> None:
    assert case.read.bias is not None
    unread = (case.read.bias != 0)[..., None, None]
    huge = case.read._replace(
        keys=case.read.keys.masked_fill(unread, 1e30), values=case.read.values.masked_fill(unread, -1e30)
    )
    close(BACKENDS[name].attend(case.queries, huge), BACKENDS[name].attend(*case))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LAWFUL)
def test_a_backend_answers_in_the_dtype_of_the_queries(name: str, dtype: torch.dtype) -> None:
    queries, read = case(padding=(3, 0))
    assert read.bias is not None
    narrow = KeyValue(read.keys.to(dtype), read.values.to(dtype), read.bias.to(dtype), read.padding)
    found = BACKENDS[name].attend(queries.to(dtype), narrow)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), formula(queries, read), rtol=0.03, atol=0.03)


# flex: refused on a CPU, where torch would compile it for every shape; its mathematics are the same on every device.


@pytest.fixture
def flex() -> Iterator[Attend]:
    """FlexAttention within a compiled step, of which torch makes plain operators."""
    torch._dynamo.reset()
    yield torch.compile(FlexAttention().attend, backend="eager", fullgraph=True, dynamic=False)
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "each"), [(2, 2), (4, 1)], ids=["grouped", "ungrouped"])
@pytest.mark.parametrize("padding", [None, (0, 13)], ids=["even", "padded"])
def test_flex_in_a_compiled_step_gives_what_eager_gives(flex: Attend, groups: int, each: int, padding: Any) -> None:
    made = case(groups=groups, each=each, padding=padding)
    close(flex(*made), EagerAttention().attend(*made))


@pytest.mark.slow
def test_flex_leaves_out_any_keys(flex: Attend) -> None:
    queries, read = case()
    bias = torch.zeros(2, 37).masked_fill(torch.arange(37) % 3 == 1, -math.inf)
    loud = read._replace(keys=read.keys.masked_fill((bias != 0)[..., None, None], 1e30), bias=bias)
    close(flex(queries, loud), EagerAttention().attend(queries, read._replace(bias=bias)))


@pytest.mark.full
def test_flex_s_compiled_kernel_gives_what_eager_gives() -> None:
    torch._dynamo.reset()
    made = case(window=20, keys=150, padding=(0, 140))
    with torch.inference_mode():
        found = torch.compile(FlexAttention().attend, fullgraph=True, dynamic=False)(*made)
        close(found, EagerAttention().attend(*made))


@attrs.frozen
class FlexAnywhere(FlexAttention):
    """Flex, wherever it is."""

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        return []


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["flex-anywhere", "sdpa"])
def test_a_generation_whose_steps_are_compiled_gives_eager_s_tokens(models: dict[str, Model], attention: str) -> None:
    catalogue = Catalogue.load()
    torch._dynamo.reset()
    found = []
    for name, compiled in ((attention, True), ("eager", False)):
        built = "sdpa" if name == "flex-anywhere" else name
        config = catalogue.configure("es-dllm", settings={"gen_length": 6, "block_length": 6, "attention": built})
        engine = Engine.build(models["dream-shallow"], config, catalogue)
        if (
            name == "flex-anywhere"
        ):  # put there later: at build it would be compiled for shapes in general, which a CPU cannot
            engine.components = attrs.evolve(engine.components, attention=FlexAnywhere())
        engine.step_function = StepFunction(compiled, backend="eager")
        found.append(engine.generate([[5, 6, 7, 8], [9]], seed=0).tokens)
    assert torch.equal(*found)


# matmul: its laws above hold in float32 too; here what bfloat16 adds, and that it works in parts.


def in_half(made: Case) -> Case:
    """Return a case in bfloat16."""
    bias = None if made.read.bias is None else made.read.bias.bfloat16()
    keys, values = made.read.keys.bfloat16(), made.read.values.bfloat16()
    return Case(made.queries.bfloat16(), KeyValue(keys, values, bias, made.read.padding))


HALF = 2.0**-8
"""the most that rounding to bfloat16 changes a number by, of the number"""


def off_at_most(queries: Tensor, read: KeyValue) -> Tensor:
    """How far bfloat16 may be off, (R, N, H, D), where queries, scores, weights and the result are rounded.

    With u = HALF, A = sum |q k| / sqrt(D) and s = q k / sqrt(D): a score is off by e = u A + u (|s| + u A) at most. With E the
    largest e of the keys that are read, a weight is between exp(-2 E) and exp(2 E) times the right one, then rounded. What
    float32 sums lose is 1 % of that and 1e-6 at most.
    """
    result = torch.empty_like(queries, dtype=torch.float64)
    for place, scaled, keys, values in by_head(queries, read):
        scores, sizes = scaled @ keys.T, scaled.abs() @ keys.abs().T
        off = (HALF * sizes + HALF * (scores.abs() + HALF * sizes)).amax(1, keepdim=True)
        weights = scores.softmax(-1)
        mixed = (torch.expm1(2 * off) * (1 + HALF) + HALF) * (weights @ values.abs())
        result[place] = mixed * (1 + HALF) + HALF * (weights @ values).abs()
    return 1.01 * result + 1e-6


@in_bfloat16
@given(case=cases())
def test_matmul_in_bfloat16_is_off_by_what_rounding_allows_at_most(case: Case) -> None:
    narrow = in_half(case)
    found = MatmulAttention().attend(*narrow)
    assert found.dtype == torch.bfloat16
    assert ((found.double() - attention(*narrow)).abs() <= off_at_most(*narrow)).all()


@in_bfloat16
def test_matmul_is_off_by_less_than_three_times_as_much_as_sdpa_on_average() -> None:
    narrow = in_half(case(rows=1, window=16, keys=768, groups=2, each=1, dim=128))
    expected = attention(*narrow)
    off = {
        type(backend): (backend.attend(*narrow).double() - expected).square().mean().sqrt()
        for backend in (MatmulAttention(), SdpaAttention())
    }
    assert 0 < off[MatmulAttention] < 3 * off[SdpaAttention]


@pytest.mark.parametrize("padding", [None, (0, 13, 36)], ids=["even", "padded"])
@pytest.mark.parametrize("scores", [1, 400, 1 << 23])
@pytest.mark.parametrize("keys", [1, 2 * 37 * 2 * 16, 1 << 21], ids=["a row", "two rows", "all rows"])
def test_matmul_gives_the_same_in_parts(monkeypatch: pytest.MonkeyPatch, padding: Any, scores: int, keys: int) -> None:
    made = case(rows=3, padding=padding)
    whole = MatmulAttention().attend(*made)
    monkeypatch.setattr(matmul_module, "_SCORES", scores)
    monkeypatch.setattr(matmul_module, "_KEYS", keys)
    close(MatmulAttention().attend(*made), whole)
    close(whole, formula(*made))


@given(case=cases())
def test_matmul_s_shapes_are_foretold_to_the_compiler(case: Case) -> None:
    queries, read = case
    both, inputs = ("test_schema", "test_faketensor"), (queries, read.keys, read.values, read.shifts())
    torch.library.opcheck(torch.ops.esdllm_backends.matmul_attention, inputs, test_utils=both)


def test_matmul_takes_what_lies_apart() -> None:
    queries, read = case(rows=2, window=5, groups=2, each=2)
    wide = torch.cat([queries, queries, queries], 2)[:, :, 4:8]
    keys, values = (x.transpose(0, 1).contiguous().transpose(0, 1) for x in (read.keys, read.values))
    assert not wide.is_contiguous()
    assert not keys.is_contiguous()
    close(MatmulAttention().attend(wide, KeyValue(keys, values, None, None)), formula(queries, read))


def test_matmul_gives_all_its_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert MatmulAttention().problems(SPEC, GPU, torch.float16) == [
        "it multiplies by oneDNN, which computes on a CPU, not on cuda",
        "it is for bfloat16, not for float16",
        "this processor or this torch has no bfloat16 products by oneDNN",
    ]
    assert MatmulAttention().problems(SPEC, CPU, torch.bfloat16) == [
        "this processor or this torch has no bfloat16 products by oneDNN"
    ]


@pytest.mark.slow
@in_bfloat16
@pytest.mark.parametrize("name", ["llada-0", "dream-0"])
def test_a_generation_with_matmul_whose_steps_are_compiled_gives_the_same_tokens(name: str, tmp_path: Path) -> None:
    model = load_model(write_small(tmp_path / name, CASES / name), "cpu", "bfloat16", CATALOGUE)
    settings = {"gen_length": 6, "block_length": 6, "attention": "matmul"}
    engine = Engine.build(model, CATALOGUE.configure("es-dllm", settings=settings), CATALOGUE)
    torch._dynamo.reset()
    expected = engine.generate([[5, 6, 7, 8], [9]], seed=0).tokens
    engine.step_function = StepFunction(True, backend="aot_eager")
    assert engine.generate([[5, 6, 7, 8], [9]], seed=0).tokens.equal(expected)


# Memory: no (N, K) tensor where none is needed.

LONG = 8192


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest storage that any operator returned."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        self.nbytes = max([self.nbytes, *(tensor.untyped_storage().nbytes() for tensor in tensors)])
        return found


def largest(attend: Attend, window: int, padding: Any) -> int:
    made = case(rows=1, window=window, keys=LONG, groups=1, each=2, padding=padding)
    with torch.inference_mode(), Largest() as seen:
        attend(*made)
    return seen.nbytes


@pytest.mark.parametrize("padding", [None, (100,)], ids=["even", "padded"])
@pytest.mark.parametrize("name", [name for name in HERE if name != "eager"])
def test_no_operator_makes_a_tensor_of_queries_by_keys(name: str, padding: Any) -> None:
    window, heads, dim = 512, 2, 16
    assert largest(EagerAttention().attend, window, padding) >= 4 * heads * window * LONG  # what is looked for is seen
    assert largest(BACKENDS[name].attend, window, padding) <= 4 * heads * dim * LONG


def test_matmul_makes_no_tensor_of_more_products_than_it_may_hold() -> None:
    queries, read = case(rows=1, window=1024, keys=LONG, groups=1, each=2, padding=(100,))
    held = 4 * matmul_module._SCORES
    assert 4 * queries.shape[1] * queries.shape[2] * LONG >= 2 * held
    with torch.inference_mode(), Largest() as seen:
        matmul_module._matmul_attention(queries, read.keys, read.values, read.shifts())
    assert 0 < seen.nbytes <= held


# xformers, as far as it can be told without a GPU: why it cannot serve.


def problems(spec: ModelSpec = SPEC, device: torch.device = GPU, dtype: torch.dtype = torch.float16) -> list[str]:
    return XformersAttention().problems(spec, device, dtype)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which xformers serves."""
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *sizes, device, dtype: zeros(*sizes, dtype=dtype))
    monkeypatch.setattr(xformers_module, "_run", lambda queries, *rest: queries)
    fits = type("kernels", (), {"_fwd_kernel_splitK": object()})
    monkeypatch.setattr(xformers_module, "find_spec", lambda name: name)
    monkeypatch.setattr(xformers_module, "import_module", lambda name: fits)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    return monkeypatch


@pytest.mark.usefixtures("gpu")
def test_xformers_serves_where_nothing_is_missing() -> None:
    assert problems() == []


def test_without_xformers_and_triton_both_are_named(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(xformers_module, "find_spec", lambda name: None)
    assert problems() == [
        'xformers is not installed: pip install "esdllm[xformers]"',
        "triton is not installed; it comes with torch for CUDA",
    ]


def test_an_xformers_that_cannot_be_imported_is_a_reason(gpu: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> Any:
        raise ImportError("built for another torch")

    gpu.setattr(xformers_module, "import_module", broken)
    assert problems() == [
        "xformers cannot be imported: ImportError: built for another torch; install the release made for your torch"
    ]


def test_a_triton_that_xformers_cannot_use_is_a_reason(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(xformers_module, "import_module", lambda name: type("kernels", (), {"_fwd_kernel_splitK": None}))
    assert problems() == [
        "xformers cannot use the triton that is installed; install the one that your torch comes with"
    ]


def test_an_xformers_without_kernels_for_this_torch_is_a_reason(gpu: pytest.MonkeyPatch) -> None:
    def missing(*inputs: Any) -> None:
        raise NotImplementedError(
            "No operator found\n`fa2F` is not supported because:\n    xFormers wasn't build with CUDA support"
        )

    gpu.setattr(xformers_module, "_run", missing)
    (reason,) = problems()
    assert reason.startswith("xformers fails here: NotImplementedError: ")
    assert "xFormers wasn't build with CUDA support; `python -m xformers.info`" in reason


def test_an_old_gpu_is_a_reason(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert problems() == ["the GPU has compute capability 7.5; 8.0 or above is needed"]


def test_a_torch_for_rocm_is_a_reason(gpu: pytest.MonkeyPatch) -> None:
    gpu.setattr(torch.version, "hip", "6.2")
    assert problems() == ["it needs a CUDA GPU, and this torch is built for ROCm"]


@pytest.mark.usefixtures("gpu")
def test_all_reasons_come_at_once() -> None:
    assert problems(attrs.evolve(SPEC, head_dim=80), CPU, torch.float32) == [
        "it needs a CUDA GPU, not the device 'cpu'",
        "it computes in float16 or bfloat16, not in float32",
        "the model's head size is 80; 16, 32, 64, 128, 256 are served",
    ]


def test_xformers_is_not_imported_where_it_cannot_serve(gpu: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    gpu.setattr(xformers_module, "import_module", imported.append)
    problems(device=CPU)
    assert not imported


def test_flex_says_why_it_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_module, "find_spec", lambda name: None)
    small = attrs.evolve(SPEC, head_dim=8)
    assert FlexAttention().problems(small, torch.device("meta"), torch.float64) == [
        "it needs a CUDA GPU, not the device 'meta'",
        "triton, which compiles it, is not installed; it comes with torch for CUDA",
        "it computes in float32, float16, bfloat16, not in float64",
        "the model's head size is 8; 16 or above is served",
    ]
    monkeypatch.setattr(flex_module, "find_spec", lambda name: name)
    assert FlexAttention().problems(SPEC, GPU, torch.bfloat16) == []
    assert FlexAttention().problems(SPEC, CPU, torch.float32) == [
        "on a CPU it would be compiled anew for every shape, for seconds each; sdpa serves there"
    ]


def triton_problems(
    spec: ModelSpec = SPEC, device: torch.device = GPU, dtype: torch.dtype = torch.float16
) -> list[str]:
    return TritonAttention().problems(spec, device, dtype)


@pytest.fixture
def triton_gpu(gpu: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine on which our own Triton kernels serve."""
    gpu.setattr(triton_module, "find_spec", lambda name: name)
    gpu.setattr(triton_module, "_attend", lambda queries, *rest: queries)
    gpu.setattr(torch.cuda, "device", lambda device: nullcontext())
    return gpu


@pytest.mark.usefixtures("triton_gpu")
def test_our_triton_kernels_serve_where_nothing_is_missing_and_by_name_only() -> None:
    assert triton_problems() == []
    assert triton_problems(dtype=torch.float32) == []
    assert choose_attention(CATALOGUE, SPEC, GPU, torch.bfloat16).others["triton"] == ("it serves by name only",)


def test_our_triton_kernels_say_all_that_is_missing(triton_gpu: pytest.MonkeyPatch) -> None:
    triton_gpu.setattr(triton_module, "find_spec", lambda name: None)
    assert triton_problems(attrs.evolve(SPEC, head_dim=512), CPU, torch.float64) == [
        "it needs a CUDA GPU, not the device 'cpu'",
        "triton is not installed; it comes with torch for CUDA",
        "it computes in float32, float16, bfloat16, not in float64",
        "the model's head size is 512; up to 256 is served",
    ]
    triton_gpu.setattr(triton_module, "find_spec", lambda name: name)
    triton_gpu.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert triton_problems() == ["the GPU has compute capability 7.5; 8.0 or above is needed"]


def test_a_triton_that_cannot_compile_is_a_reason_and_is_tried_on_the_model_s_own_device(
    triton_gpu: pytest.MonkeyPatch,
) -> None:
    current: list[torch.device] = []

    def broken(*inputs: Any) -> None:
        assert current == [torch.device("cuda:1")]
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    def entering(device: torch.device) -> Any:
        current.append(device)
        return nullcontext()

    triton_gpu.setattr(triton_module, "_attend", broken)
    triton_gpu.setattr(torch.cuda, "device", entering)
    (reason,) = triton_problems(device=torch.device("cuda:1"))
    assert reason.startswith("triton fails here: RuntimeError: Failed to find C compiler. Please specify via CC")


def test_a_named_backend_that_cannot_serve_is_refused_with_all_its_reasons(
    monkeypatch: pytest.MonkeyPatch, dream: Model
) -> None:
    monkeypatch.setattr(xformers_module, "find_spec", lambda name: None)
    config = CATALOGUE.configure("es-dllm", settings={"attention": "xformers"})
    with pytest.raises(UnavailableError) as caught:
        Engine.build(dream, config, CATALOGUE)
    assert str(caught.value) == (
        "attention 'xformers' cannot serve here: it needs a CUDA GPU, not the device 'cpu'; xformers is not installed: "
        'pip install "esdllm[xformers]"; triton is not installed; it comes with torch for CUDA; it computes in float16 or '
        "bfloat16, not in float32"
    )


# auto


@attrs.frozen
class Fast(SdpaAttention):
    """A backend that goes first."""

    @property
    def rank(self) -> Any:
        return 5


@attrs.frozen
class Refusing(Fast):
    """A backend that goes before that, and serves nobody."""

    @property
    def rank(self) -> Any:
        return 1

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        return ["too early", "too late"]


@attrs.frozen
class Unranked:
    """A backend from before there were ranks."""

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        return []

    def attend(self, queries: Tensor, read: KeyValue) -> Tensor:
        return queries


@attrs.frozen
class Demanding(Fast):
    """A backend with an option that must be given."""

    size: int


def offering(*, installed: bool = True, **backends: type) -> Catalogue:
    return Catalogue.load({"mine": offers("esdllm_attention_backends", backends)}, installed=installed)


def test_auto_takes_sdpa_on_a_cpu_and_says_why_not_the_others(dream: Model) -> None:
    engine = Engine.build(dream, CATALOGUE.configure("es-dllm", settings={"attention": "auto"}), CATALOGUE)
    assert isinstance(engine.components.attention, SdpaAttention)
    choice = engine.components.attention_choice
    assert choice is not None
    assert choice.name == "sdpa"
    assert choice.others["xformers"][0] == "it needs a CUDA GPU, not the device 'cpu'"
    assert choice.others["eager"] == ("it serves by name only",)
    assert set(choice.others) == set(CATALOGUE.names("attention")) - {"sdpa"}


@pytest.mark.usefixtures("gpu")
def test_auto_takes_xformers_on_a_gpu_where_it_can_serve() -> None:
    choice = choose_attention(CATALOGUE, SPEC, GPU, torch.bfloat16)
    assert choice.name == "xformers"
    assert choice.others["sdpa"] == ("xformers comes first",)


def test_auto_takes_the_lowest_rank_that_can_serve_whoever_offers_it() -> None:
    choice = choose_attention(offering(fast=Fast, refusing=Refusing), SPEC, CPU, torch.float32)
    assert choice.name == "fast"
    assert choice.backend == Fast()
    assert list(choice.others)[:4] == ["refusing", "xformers", "matmul", "sdpa"]
    assert choice.others["refusing"] == ("too early", "too late")
    assert choice.others["sdpa"] == ("fast comes first",)


def test_equal_ranks_go_by_name() -> None:
    assert choose_attention(offering(b=Fast, a=Fast), SPEC, CPU, torch.float32).name == "a"


def test_a_backend_without_a_rank_or_with_an_option_to_be_given_is_left_out() -> None:
    choice = choose_attention(offering(unranked=Unranked, demanding=Demanding), SPEC, CPU, torch.float32)
    assert choice.name == "sdpa"
    assert choice.others["unranked"] == ("it serves by name only",)
    assert choice.others["demanding"] == ("attention 'demanding': option 'size' must be given",)


def test_auto_where_none_serves_is_an_error_with_all_reasons_of_all() -> None:
    catalogue = offering(installed=False, refusing=Refusing, unranked=Unranked)
    with pytest.raises(UnavailableError) as caught:
        choose_attention(catalogue, SPEC, CPU, torch.float32)
    assert str(caught.value) == (
        "attention 'auto': no backend can serve here: refusing: too early; too late | unranked: it serves by name only"
    )


def test_no_backend_may_be_named_auto() -> None:
    expected = (
        r"plugin 'mine' of \(registered in this process\) offers attention 'auto': the name is reserved for the choice "
        "among those on offer; rename it"
    )
    with pytest.raises(PluginError, match=expected):
        offering(auto=Fast)


def test_auto_has_no_options(dream: Model) -> None:
    config = CATALOGUE.configure("es-dllm", settings={"attention": {"name": "auto", "window": 3}})
    with pytest.raises(ConfigError, match="attention 'auto' has no option 'window'; there are none"):
        Engine.build(dream, config, CATALOGUE)


def test_a_misspelt_auto_is_pointed_at() -> None:
    config = CATALOGUE.configure("es-dllm", settings={"attention": "atuo"})
    with pytest.raises(ConfigError, match="unknown attention 'atuo'; did you mean 'auto'\\? known: auto, eager"):
        CATALOGUE.build("attention", config.attention)


def test_a_backend_that_is_named_needs_no_choice(dream: Model) -> None:
    config = CATALOGUE.configure("es-dllm", settings={"attention": "sdpa"})
    assert Engine.build(dream, config, CATALOGUE).components.attention_choice is None


def test_a_preset_leaves_the_choice_to_auto(dream: Model) -> None:
    choice = Engine.build(dream, CATALOGUE.configure("es-dllm"), CATALOGUE).components.attention_choice
    assert choice is not None
    assert choice.name == "sdpa"


@in_bfloat16
def test_auto_takes_matmul_on_a_cpu_in_bfloat16() -> None:
    choice = choose_attention(CATALOGUE, SPEC, CPU, torch.bfloat16)
    assert choice.name == "matmul"
    assert choice.others["sdpa"] == ("matmul comes first",)


def test_auto_takes_sdpa_in_bfloat16_where_it_is_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    choice = choose_attention(CATALOGUE, SPEC, CPU, torch.bfloat16)
    assert choice.name == "sdpa"
    assert choice.others["matmul"] == ("this processor or this torch has no bfloat16 products by oneDNN",)


@pytest.mark.slow
def test_explain_shows_what_auto_chose(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["explain", "-m", str(CASES / "dream-0"), "-s", "attention=auto", "--device", "cpu"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "auto: sdpa" in text
    assert "not xformers: it needs a CUDA GPU" in text
    assert main([*arguments, "--json"]) == 0
    choice = json.loads(capsys.readouterr().out)["attention_choice"]
    assert choice["name"] == "sdpa"
    assert choice["others"]["eager"] == ["it serves by name only"]
