"""The laws of cache stores: what was written is read back, exactly or within the stated error."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from esdllm import CacheShape, CacheStore, CacheWrite, Catalogue, Engine, Model, Phase, load_model
from esdllm.measure.evaluation.statistics import agreement
from esdllm.testing.memory import TensorMemory
from esdllm_backends.cache.dense import DenseStore
from esdllm_backends.cache.disk import DiskStore
from esdllm_backends.cache.int8 import Int8Store
from esdllm_backends.cache.none import NoStore
from esdllm_backends.cache.offloaded import OffloadedStore
from esdllm_backends.cache.sparse import SparseStore

SHAPE = CacheShape(2, 20, 3, 2, 4, 16, (1,), torch.float32, torch.device("cpu"))


def write(layer: int, positions: torch.Tensor, phase: Phase, seed: int = 0, bias: Any = None) -> CacheWrite:
    draw = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(*positions.shape, 2, 4, generator=draw) for _ in range(2))
    queries = torch.randn(*positions.shape, 4, 4, generator=draw)
    return CacheWrite(layer, positions, queries, keys, values, bias, torch.arange(12, 16).expand(2, -1), phase)


@given(columns=st.lists(st.integers(0, 19), min_size=1, max_size=20, unique=True), layer=st.integers(0, 2))
@settings(deadline=None)
def test_what_a_dense_cache_was_given_is_read_back_and_nothing_else_changes(columns: list[int], layer: int) -> None:
    cache = DenseStore().allocate(SHAPE)
    positions = torch.tensor([columns, columns[::-1]])
    made = write(layer, positions, Phase.ALL)
    read = cache.update(made)
    index = positions[..., None, None].expand_as(made.keys)
    assert torch.equal(read.keys.gather(1, index), made.keys)
    assert torch.equal(read.values.gather(1, index), made.values)
    others = [column for column in range(20) if column not in columns]
    assert not read.keys[:, others].any()
    assert torch.equal(cache.recall(layer, "key", positions), made.keys.flatten(2))
    assert torch.equal(cache.recall(layer, "value", positions), made.values.flatten(2))
    x = torch.randn(*positions.shape, 16)
    cache.remember(1, positions, x)
    assert torch.equal(cache.recall(1, "hidden", positions), x)
    cache.reset()
    assert not cache.recall(1, "hidden", positions).any()
    assert not cache.update(write(0, positions[:, :0], Phase.ALL)).keys.any()


def test_a_sparse_cache_reads_the_best_outside_the_block_and_the_block_itself() -> None:
    cache = SparseStore(keep=0.25, delay_step=1).allocate(SHAPE)
    everything = torch.arange(20).expand(2, -1)
    made = write(0, everything, Phase.SELECT)
    keys = torch.zeros_like(made.keys)
    keys[0, 5], keys[1, 18] = 9.0, 9.0
    made = made._replace(keys=keys, queries=torch.ones_like(made.queries))
    assert cache.update(made).keys.shape[1] == 20  # the choosing step itself reads everything
    read = cache.update(write(0, everything[:, 12:16], Phase.KEPT, seed=1))
    assert read.keys.shape[1] == 4 + 4
    assert (read.keys[0] == 9).all(-1).any()
    assert (read.keys[1] == 9).all(-1).any()
    assert read.bias is None


def test_a_sparse_cache_never_keeps_padding() -> None:
    bias = torch.zeros(2, 20)
    bias[1, :10] = float("-inf")
    cache = SparseStore(keep=0.5, delay_step=0).allocate(SHAPE)
    everything = torch.arange(20).expand(2, -1)
    cache.update(write(0, everything, Phase.SELECT, bias=bias))
    read = cache.update(write(0, everything[:, 12:16], Phase.KEPT, bias=bias))
    assert read.bias is not None
    assert (read.bias[0] == 0).all()
    assert int((read.bias[1] == 0).sum()) == 3 + 4  # half of the six real positions outside, and the block


def test_a_sparse_cache_asks_with_the_queries_of_real_positions_alone() -> None:
    bias = torch.zeros(2, 20)
    bias[1, :10] = float("-inf")
    everything = torch.arange(20).expand(2, -1)
    made = write(0, everything, Phase.SELECT, bias=bias)
    loud = made.queries.clone()
    loud[1, :10] = 1e4
    kept = []
    for queries in (made.queries, loud):
        cache = SparseStore(keep=0.5, delay_step=0).allocate(SHAPE)
        cache.update(made._replace(queries=queries))
        kept.append(cache.update(write(0, everything[:, 12:16], Phase.KEPT, bias=bias)).keys)
    assert torch.equal(*kept)


@pytest.mark.parametrize(("step", "phase"), [(0, Phase.ALL), (1, Phase.SELECT), (2, Phase.KEPT), (9, Phase.KEPT)])
def test_a_sparse_store_chooses_at_its_delay_step(step: int, phase: Phase) -> None:
    assert SparseStore(keep=0.5, delay_step=1).phase(step) is phase


@given(seed=st.integers(0, 2**31), exponent=st.integers(-30, 30))
@settings(deadline=None)
def test_in_8_bits_a_number_is_off_by_half_a_scale_at_most(seed: int, exponent: int) -> None:
    cache, positions = Int8Store().allocate(SHAPE), torch.arange(20).expand(2, -1)
    made = write(0, positions, Phase.ALL, seed)
    made = made._replace(keys=made.keys * 10.0**exponent)
    read = cache.update(made)
    for found, expected in ((read.keys, made.keys), (read.values, made.values)):
        scale = expected.abs().amax(-1, keepdim=True) / 127
        assert ((found - expected).abs() <= 0.501 * scale).all()
    assert torch.equal(cache.recall(0, "key", positions), read.keys.flatten(2))
    x = torch.randn(2, 20, 16, generator=torch.Generator().manual_seed(seed))
    cache.remember(1, positions, x)
    off = (cache.recall(1, "hidden", positions) - x).abs()
    assert (off <= 0.501 * x.abs().amax(-1, keepdim=True) / 127).all()


def test_what_8_bits_gave_they_give_again_and_zero_is_zero() -> None:
    cache, positions = Int8Store().allocate(SHAPE), torch.arange(20).expand(2, -1)
    read = cache.update(write(0, positions, Phase.ALL))
    again = cache.update(write(0, positions, Phase.ALL)._replace(keys=read.keys, values=read.values))
    torch.testing.assert_close(again.keys, read.keys, rtol=1e-6, atol=0)
    assert not cache.update(write(1, positions[:, :3], Phase.ALL)).keys[:, 3:].any()
    cache.reset()
    assert not cache.recall(0, "key", positions).any()


@pytest.mark.slow
def test_in_8_bits_a_trained_model_says_nearly_what_it_says_with_the_dense_store(catalogue: Catalogue) -> None:
    model = load_model("tiny-llada", "cpu", catalogue=catalogue)
    prompts = ["Sort these numbers: 31, 4, 15.", "What is 12 + 7?", "Who are you?", "Sort 5, 90, 41 and 7."]
    found = {}
    for store in ("dense", "int8"):
        config = catalogue.configure("es-dllm", settings={"gen_length": 32, "block_length": 16, "cache": store})
        found[store] = Engine.build(model, config, catalogue).generate(prompts, chat=True).answers
    pairs = list(zip(found["dense"], found["int8"], strict=True))
    assert sum(agreement(mine, theirs) for mine, theirs in pairs) / len(pairs) > 0.9


def test_a_position_in_8_bits_takes_a_byte_a_number_and_4_a_head() -> None:
    shape = evolve(SHAPE, remembered=())
    cache = Int8Store().allocate(shape)
    assert sum(held.numbers.nbytes + held.scales.nbytes for held in (*cache.keys, *cache.values)) == 40 * 6 * 2 * (
        4 + 4
    )


@pytest.mark.parametrize("step_in_block", [0, 1, 2, 9])
def test_an_8_bit_cache_reads_everything_at_every_step_and_hands_the_padding_on(step_in_block: int) -> None:
    store, everything = Int8Store(), torch.arange(20).expand(2, -1)
    assert store.persistent
    assert store.phase(step_in_block) is Phase.ALL
    bias = torch.zeros(2, 20)
    bias[1, :10] = float("-inf")
    read = store.allocate(SHAPE).update(write(0, everything[:, :3], Phase.ALL, bias=bias)._replace(padding=(0, 10)))
    assert read.keys.shape == read.values.shape == (2, 20, 2, 4)
    assert read.bias is bias
    assert read.padding == (0, 10)


# ----------------------------------------------------------------------------------------------------- what it takes

LARGE = CacheShape(2, 256, 5, 4, 16, 64, (1, 3), torch.float32, torch.device("cpu"))
LAYER = 2 * 256 * 64 * 4
"""bytes of one layer's keys in float32"""
HOLDING: dict[str, tuple[CacheStore, int]] = {
    "none": (NoStore(), 0),
    "dense": (DenseStore(), 12 * LAYER + 16 + 64),
    "offloaded": (OffloadedStore(), 6 * LAYER + 16 + 12 * LAYER),
    "offloaded, some at home": (OffloadedStore(8 * LAYER + 16), (6 + 2) * LAYER + 16 + 10 * LAYER),
    "disk": (DiskStore(), 6 * LAYER + 16),
    "disk, all at home": (DiskStore(memory_bytes=10**9), 12 * LAYER + 16),
}


class Taken(NamedTuple):
    """Bytes of a cache's tensors."""

    allocated: int
    used: int
    peak: int


def taken(store: CacheStore, shape: CacheShape) -> Taken:
    """Return what a cache took once allocated, after one position a row went through it in every phase, and at most."""
    position = torch.full((2, 1), 7)
    writes = [
        CacheWrite(layer, position, *torch.ones(3, 2, 1, 4, 16, dtype=shape.dtype), None, position, phase)
        for phase in Phase
        for layer in range(5)
    ]
    x = torch.ones(2, 1, 64, dtype=shape.dtype)
    with TensorMemory() as found:
        cache = store.allocate(shape)
        allocated = found.held
        for each in writes:
            read = cache.update(each)
            if each.layer in shape.remembered:
                cache.remember(each.layer, position, x)
            del read
        used = found.held
    return Taken(allocated, used, found.peak)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HOLDING)
def test_a_cache_takes_what_its_store_says_to_the_byte(name: str, dtype: torch.dtype) -> None:
    store, expected = HOLDING[name]
    shape = evolve(LARGE, dtype=dtype)
    if dtype is torch.float32:
        assert store.memory(shape).device + store.memory(shape).host == expected
    found, predicted = taken(store, shape), store.memory(shape)
    assert found.allocated == predicted.device + predicted.host
    assert found.used == pytest.approx(found.allocated, rel=0.01)  # the disk's thread may hold a few rows yet


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("store", [Int8Store(), SparseStore(keep=1.0), SparseStore(keep=1.0, delay_step=0)])
def test_what_a_store_copies_for_attention_to_read_is_in_what_it_says(store: CacheStore, dtype: torch.dtype) -> None:
    shape = evolve(LARGE, dtype=dtype)
    found = taken(store, shape)
    assert found.allocated == found.used < found.peak
    assert found.peak == pytest.approx(store.memory(shape).device, rel=0.03)


def test_a_sparse_store_takes_no_more_than_it_says() -> None:
    assert taken(SparseStore(keep=0.3), LARGE).peak <= SparseStore(keep=0.3).memory(LARGE).device


@pytest.mark.parametrize("store", [NoStore(), DenseStore(), Int8Store(), SparseStore(), OffloadedStore(), DiskStore()])
def test_what_a_cache_takes_is_known_without_allocating_it(store: CacheStore) -> None:
    with TensorMemory() as found:
        said = store.memory(evolve(LARGE, length=10**15, compiled=True, device=torch.device("meta")))
    assert found.peak == 0
    assert (said.device > 10**15) is not isinstance(store, NoStore)


def test_an_engine_frees_a_cache_that_knows_no_closing(catalogue: Catalogue, llada: Model) -> None:
    settings = {"gen_length": 8, "block_length": 8, "cache": "dense"}
    engine = Engine.build(llada, catalogue.configure("es-dllm", settings=settings), catalogue)
    first = engine.generate([[1, 2, 3]]).tokens
    engine.close()
    engine.close()
    assert torch.equal(engine.generate([[1, 2, 3]]).tokens, first)
