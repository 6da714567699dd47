"""Our own split-K attention, by Triton's interpreter, is the softmax of scaled products over the keys that are read."""

from __future__ import annotations

import math
from typing import Any

import attrs
import pytest
import torch
from helpers import CASES, offers
from oracle import attention
from torch import Tensor

from esdllm import Catalogue, Engine, KeyValue, Model, ModelSpec, load_model
from esdllm_backends.attention.split_keys import attend_splitting
from esdllm_backends.attention.triton import TritonAttention

ROUNDING = {torch.float32: 2e-6, torch.float16: 1e-3}
"""of values of size 1; bfloat16 is one of numpy's no more than of its interpreter's"""


def drawn(
    rows: int, window: int, keys: int, groups: int, each: int, dim: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, KeyValue]:
    """Return queries, a part of a joint projection, and keys and values as a cache has them: each head's together."""
    draw = torch.Generator().manual_seed(window * keys + dim)
    joint = torch.randn(rows, window, groups * each + 2, dim, generator=draw).to(dtype)
    made = torch.randn(2, rows, groups, keys, dim, generator=draw).to(dtype)
    return joint[:, :, 1:-1], KeyValue(made[0].transpose(1, 2), made[1].transpose(1, 2), None)


def padded(read: KeyValue, *padding: int) -> KeyValue:
    left = torch.tensor(padding)
    hidden = torch.arange(read.keys.shape[1]) < left[:, None]
    bias = torch.zeros(hidden.shape, dtype=read.keys.dtype).masked_fill(hidden, -math.inf)
    return read._replace(bias=bias, padding=left)


def chosen(read: KeyValue, every: int = 3) -> KeyValue:
    """Leave out keys here and there, another set of each row's."""
    rows, keys = read.keys.shape[:2]
    out = torch.arange(keys) % every == torch.arange(rows)[:, None]
    return read._replace(bias=torch.zeros(rows, keys, dtype=read.keys.dtype).masked_fill(out, -math.inf))


def close(found: Tensor, queries: Tensor, read: KeyValue) -> None:
    assert found.shape == queries.shape
    assert found.dtype == queries.dtype
    expected = attention(queries.double(), KeyValue(*(x if x is None else x.double() for x in read[:3])))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=ROUNDING[queries.dtype])


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("hidden", [None, "padding", "chosen"])
@pytest.mark.parametrize(
    ("window", "keys", "groups", "each", "dim"),
    [(1, 1, 1, 1, 16), (5, 37, 2, 3, 16), (1, 70, 3, 1, 20), (3, 64, 1, 4, 8), (18, 65, 1, 1, 64), (2, 40, 1, 2, 130)],
)
def test_attention_is_the_formula_s(
    window: int, keys: int, groups: int, each: int, dim: int, hidden: str | None, dtype: torch.dtype
) -> None:
    queries, read = drawn(2, window, keys, groups, each, dim, dtype)
    if hidden == "padding":
        read = padded(read, 0, keys - 1)
    elif hidden == "chosen" and keys > 1:
        read = chosen(read)
    close(TritonAttention().attend(queries, read), queries, read)


@pytest.mark.parametrize("splits", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("padding", [(0, 0), (3, 64), (130, 199)], ids=str)
def test_however_keys_are_split_the_result_is_the_same(splits: int, padding: tuple[int, ...]) -> None:
    """Whole splits of padding among them, and fewer splits than were asked for."""
    queries, read = drawn(2, 2, 200, 1, 2, 16)
    read = padded(read, *padding)
    close(attend_splitting(*(queries, *read[:3]), read.padding, splits), queries, read)
    close(attend_splitting(*(queries, *read[:3]), None, splits), queries, read)


def test_more_lines_than_a_program_takes_are_shared_by_several() -> None:
    for dtype in ROUNDING:
        queries, read = drawn(1, 35, 20, 1, 2, 16, dtype)
        close(TritonAttention().attend(queries, read), queries, read)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("hide", [lambda read: padded(read, 70, 9), chosen], ids=["padding", "chosen"])
def test_a_key_that_is_left_out_is_never_read(hide: Any, splits: int) -> None:
    queries, whole = drawn(2, 3, 150, 2, 2, 16)
    read = hide(whole)
    out = (read.bias == -math.inf)[..., None, None]
    loud = [x.masked_fill(out, math.nan) for x in (read.keys, read.values)]
    close(attend_splitting(queries, *loud, read.bias, read.padding, splits), queries, read)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("where", ["queries", "keys", "values"])
def test_what_is_no_number_is_not_hidden(where: str, splits: int) -> None:
    queries, read = drawn(1, 2, 150, 1, 1, 16)
    given = {"queries": queries.clone(), "keys": read.keys.clone(), "values": read.values.clone()}
    given[where][0, 1, 0, 3] = math.nan
    found = attend_splitting(*given.values(), None, None, splits)
    assert found[0, 1].isnan().any()


@pytest.mark.parametrize("splits", [1, 3])
def test_large_products_do_not_overflow(splits: int) -> None:
    queries, read = drawn(1, 3, 150, 2, 2, 16)
    found = attend_splitting(1e4 * queries, read.keys, read.values, None, None, splits)
    close(found, 1e4 * queries, read)


def test_a_part_of_the_keys_of_a_longer_cache_is_read_where_it_lies() -> None:
    queries, whole = drawn(2, 3, 90, 2, 2, 16)
    read = padded(KeyValue(whole.keys[:, :70], whole.values[:, :70], None), 0, 9)
    assert not read.keys.is_contiguous()
    close(TritonAttention().attend(queries, read), queries, read)
    longer = chosen(whole)
    assert longer.bias is not None
    part = KeyValue(whole.keys[:, :70], whole.values[:, :70], longer.bias[:, :70])
    close(TritonAttention().attend(queries, part), queries, part)


def test_a_row_attends_alone_as_in_its_batch() -> None:
    queries, read = drawn(3, 4, 80, 2, 2, 16)
    read = padded(read, 0, 9, 70)
    together = TritonAttention().attend(queries, read)
    for row in range(3):
        one = slice(row, row + 1)
        alone = attend_splitting(queries[one], read.keys[one], read.values[one], None, read.padding[one])  # type: ignore[index]
        assert torch.equal(alone, together[one])


@pytest.mark.parametrize("hidden", [None, "padding", "chosen"])
def test_a_compiled_step_sees_one_operator_with_the_same_result(hidden: str | None) -> None:
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    queries, read = drawn(2, 3, 37, 2, 2, 16)
    read = {None: lambda: read, "padding": lambda: padded(read, 0, 9), "chosen": lambda: chosen(read)}[hidden]()
    compiled = torch.compile(TritonAttention().attend, fullgraph=True, dynamic=False, backend=count)
    assert torch.equal(compiled(queries, read), TritonAttention().attend(queries, read))
    called = [node.target for node in graphs[0].graph.nodes if node.op == "call_function"]
    assert called == [torch.ops.esdllm.triton_attention.default]
    assert len(graphs) == 1


@attrs.frozen
class Interpreted(TritonAttention):
    """Our kernels, wherever it is."""

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        return []


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return Catalogue.load({"mine": offers("esdllm_attention_backends", {"interpreted": Interpreted})})


@pytest.fixture(scope="module")
def models(catalogue: Catalogue) -> dict[str, Model]:
    return {name: load_model(CASES / name, "cpu", "float32", catalogue) for name in ("llada-0", "dream-0")}


@pytest.mark.parametrize("name", ["llada-0", "dream-0"])
@pytest.mark.parametrize("store", ["dense", "sparse"])
def test_a_generation_of_padded_prompts_gives_eager_s_tokens(
    models: dict[str, Model], catalogue: Catalogue, name: str, store: str
) -> None:
    found = {}
    for backend in ("interpreted", "eager"):
        over = {"gen_length": 8, "block_length": 4, "attention": backend, "cache": store, "early_stop": False}
        engine = Engine.build(models[name], catalogue.configure("es-dllm", settings=over), catalogue)
        found[backend] = engine.generate([[5, 6, 7, 8, 9], [11, 12]]).tokens
    assert torch.equal(found["interpreted"], found["eager"])


def blocked(read: KeyValue, window: int, size: int) -> KeyValue:
    """Let queries be of several blocks of keys, the last of them of the last; a key that is read is in the first."""
    rows, keys = read.keys.shape[:2]
    numbers = torch.arange(keys).expand(rows, -1) // size
    least = numbers.masked_fill(read.bias != 0, keys).amin(1, keepdim=True) if read.bias is not None else numbers[:, :1]
    return read._replace(query_blocks=numbers[:, -window:].maximum(least), key_blocks=numbers)


@pytest.mark.parametrize("hidden", [None, "padding", "chosen"])
@pytest.mark.parametrize("splits", [0, 3])
@pytest.mark.parametrize(("window", "keys", "size"), [(16, 70, 8), (33, 129, 1), (12, 40, 5)])
def test_a_query_reads_the_blocks_up_to_its_own(window: int, keys: int, size: int, splits: int, hidden: Any) -> None:
    queries, read = drawn(2, window, keys, 2, 3, 16)
    read = {None: read, "padding": padded(read, 0, 9), "chosen": chosen(read)}[hidden]
    read = blocked(read, window, size)
    found = attend_splitting(
        *(queries, *read[:3]), read.padding, splits, query_blocks=read.query_blocks, key_blocks=read.key_blocks
    )
    torch.testing.assert_close(found, attention(queries, read).float(), rtol=0, atol=ROUNDING[queries.dtype])
    torch.testing.assert_close(TritonAttention().attend(queries, read), found, rtol=0, atol=ROUNDING[queries.dtype])
