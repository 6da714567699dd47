"""The laws of cache stores: what was written is read back, exactly or within the stated error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esdllm import CacheShape, CacheWrite, Catalogue, Engine, Phase, load_model
from esdllm.evaluation.statistics import agreement
from esdllm_backends.cache.dense import DenseStore
from esdllm_backends.cache.int8 import Int8Store
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


def test_in_8_bits_a_trained_model_says_nearly_what_it_says_with_the_dense_store(catalogue: Catalogue) -> None:
    model = load_model("tiny-llada", "cpu", catalogue=catalogue)
    prompts = ["Sort these numbers: 31, 4, 15.", "What is 12 + 7?", "Who are you?", "Sort 5, 90, 41 and 7."]
    found = {}
    for store in ("dense", "int8"):
        config = catalogue.configure("es-dllm", settings={"gen_length": 32, "block_length": 16, "cache": store})
        found[store] = Engine.build(model, config, catalogue).generate(prompts, chat=True).answers
    pairs = list(zip(found["dense"], found["int8"], strict=True))
    assert sum(agreement(mine, theirs) for mine, theirs in pairs) / len(pairs) > 0.9


def test_8_bits_take_a_quarter_of_float32_s_memory() -> None:
    dense, small = DenseStore().allocate(SHAPE), Int8Store().allocate(SHAPE)
    assert sum(held.numbers.nbytes for held in small.keys) * 4 == sum(x.nbytes for x in dense.keys)
