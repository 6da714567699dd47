"""The offloaded store: what dense gives, with two layers on the device, and only what changed on its way back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import evolve
from cache_runs import SHAPE, Step, full_step, play, runs
from helpers import CASES
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples
from test_matrix import MODES, prompts
from torch import Tensor

from esdllm import (
    CacheShape,
    CacheWrite,
    Catalogue,
    ConfigError,
    Engine,
    EsdllmError,
    Phase,
    UnavailableError,
    load_model,
)
from esdllm_backends.cache.dense import DenseStore
from esdllm_backends.cache.offloaded import OffloadedStore, PlainTransfers
from esdllm_backends.cache.streamed import LayerTensor, StreamedCache, Tiers, nbytes

pytestmark = pytest.mark.covers


class LateTransfers(PlainTransfers):
    """Begins nothing before somebody waits for it, and notes what was begun; a buffer on its way holds no number."""

    def __init__(self, tiers: Tiers) -> None:
        super().__init__(tiers)
        for far in self.far.values():
            far.fill_(float("nan"))  # what was never written shows
        self.log: list[tuple[str, int]] = []
        self.moved = {"fetch": 0, "back": 0}
        self._line: list[tuple[Any, LayerTensor, Tensor, Tensor | None, Tensor | None]] = []

    def fetch(self, tensor: LayerTensor, near: Tensor) -> None:
        self._until(lambda waiting: waiting[2] is near)
        near.fill_(float("nan"))
        self._note("fetch", tensor, near.nbytes)
        self._line.append((super().fetch, tensor, near, None, near.clone()))

    def clear(self, tensor: LayerTensor, near: Tensor) -> None:
        self._until(lambda waiting: waiting[2] is near)
        near.fill_(float("nan"))
        self._line.append((super().clear, tensor, near, None, near.clone()))

    def write_back(self, tensor: LayerTensor, near: Tensor, index: Tensor | None) -> None:
        rows = near.shape[0] if index is None else index.shape[0]
        self._note("back", tensor, rows * near.shape[1] * near.itemsize)
        if index is None:
            self._line.append((super().write_back, tensor, near, None, near.clone()))
        else:  # the buffer may change, and what goes back may not
            copy, index = near.clone(), index.clone()
            self._line.append((super().write_back, tensor, copy, index, None))

    def wait(self, tensor: LayerTensor) -> None:
        self._note("wait", tensor, 0)
        self._until(lambda waiting: waiting[1] == tensor)

    def _note(self, what: str, tensor: LayerTensor, count: int) -> None:
        self.log.append((what, tensor.layer))
        self.moved[what] = self.moved.get(what, 0) + count

    def _until(self, concerned: Any) -> None:
        """Do what stands in line, up to the last that `concerned` names."""
        last = max((i for i, waiting in enumerate(self._line) if concerned(waiting)), default=-1)
        for move, tensor, near, index, found in self._line[: last + 1]:
            if found is not None:  # nobody touched the buffer while it was on its way
                assert torch.equal(near.nan_to_num(7.0), found.nan_to_num(7.0))
            move(*(tensor, near) if move.__name__ != "write_back" else (tensor, near, index))
        del self._line[: last + 1]


@pytest.mark.parametrize("transfers", [PlainTransfers, LateTransfers])
@given(made=runs(), share=st.none() | st.floats(0.0, 1.2))
@examples(60)
def test_whatever_a_run_writes_and_reads_an_offloaded_cache_gives_what_dense_gives(
    transfers: Any, made: tuple[CacheShape, list[Step | None]], share: float | None
) -> None:
    shape, script = made
    bound = None if share is None else int(share * nbytes(shape, range(shape.n_layers)) * shape.n_layers)
    tiers = Tiers.within(shape, bound)
    expected = list(play(DenseStore().allocate(shape), shape, script))
    found = list(play(StreamedCache(tiers, transfers(tiers)), shape, script))
    assert len(found) == len(expected)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


@pytest.mark.parametrize("bound", [None, 8 * 1024])
@pytest.mark.parametrize("count", [1, 4, 9])
def test_a_step_fetches_every_streamed_layer_once_and_writes_back_what_changed(count: int, bound: int | None) -> None:
    tiers = Tiers.within(SHAPE, bound)
    transfers = LateTransfers(tiers)
    cache = StreamedCache(tiers, transfers)
    list(play(cache, SHAPE, [full_step(0), full_step(1)]))
    transfers.moved.clear()
    for layer in range(5):
        positions = torch.arange(count).expand(2, -1)
        keys = torch.zeros(2, count, 2, 4)
        cache.update(CacheWrite(layer, positions, keys, keys, keys, None, positions, Phase.ALL))
        if layer in SHAPE.remembered:
            cache.remember(layer, positions, torch.zeros(2, count, 12))
    remembered = [layer for layer in SHAPE.remembered if layer in tiers.streamed]
    assert transfers.moved["fetch"] == tiers.far == 4 * 20 * (16 * len(tiers.streamed) + 12 * len(remembered))
    assert transfers.moved["back"] == 4 * 2 * count * (16 * len(tiers.streamed) + 12 * len(remembered))


def test_a_layer_not_written_since_the_reset_is_never_fetched() -> None:
    tiers = Tiers.within(SHAPE, None)
    transfers = LateTransfers(tiers)
    cache = StreamedCache(tiers, transfers)
    list(play(cache, SHAPE, [full_step(0)]))
    assert [entry for entry in transfers.log if entry[0] == "fetch"] == [("fetch", 0)] * 2  # for a step that may come


def test_the_next_layer_s_fetch_begins_before_a_layer_is_read_and_the_first_one_s_at_the_step_s_end() -> None:
    tiers = Tiers.within(SHAPE, None)
    transfers = LateTransfers(tiers)
    cache = StreamedCache(tiers, transfers)
    list(play(cache, SHAPE, [full_step(0), full_step(1)]))
    transfers.log.clear()
    for layer in range(5):
        positions, keys = torch.zeros(2, 1, dtype=torch.int64), torch.zeros(2, 1, 2, 4)
        cache.update(CacheWrite(layer, positions, keys, keys, keys, None, positions, Phase.ALL))
        transfers.log.append(("read", layer))
    log = transfers.log
    assert ("fetch", 0) not in log[: log.index(("read", 3))]  # the step before began it
    for layer in range(5):
        assert log.index(("wait", layer)) < log.index(("read", layer))
        assert log.index(("fetch", (layer + 1) % 5)) < log.index(("read", layer))
        if layer:
            assert log.index(("read", layer - 1)) < log.index(("fetch", (layer + 1) % 5))


def test_layers_called_out_of_turn_are_read_right() -> None:
    tiers = Tiers.within(SHAPE, None)
    cache, dense = StreamedCache(tiers, LateTransfers(tiers)), DenseStore().allocate(SHAPE)
    for each in (cache, dense):
        each.reset()
    positions = torch.arange(3).expand(2, -1)
    for number, layer in enumerate((4, 0, 2, 2, 1, 4, 3, 0)):
        x = torch.full((2, 3, 2, 4), float(number + 1))
        write = CacheWrite(layer, positions + number % 5, x, x, -x, None, positions, Phase.ALL)
        assert torch.equal(cache.update(write).values, dense.update(write).values)


@given(n_layers=st.integers(1, 9), bounds=st.tuples(st.integers(0, 60), st.integers(0, 60)), data=st.data())
def test_the_device_s_part_keeps_the_bound_and_a_larger_bound_keeps_no_fewer_layers(
    n_layers: int, bounds: tuple[int, int], data: st.DataObject
) -> None:
    remembered = data.draw(st.sets(st.integers(0, n_layers - 1), max_size=3))
    shape = CacheShape(1, 4, n_layers, 1, 4, 40, tuple(remembered), torch.float32, torch.device("cpu"))
    least = Tiers.within(shape, None).near
    small, large = (Tiers.within(shape, least + 64 * bound) for bound in sorted(bounds))
    assert small.near <= least + 64 * min(bounds)
    assert len(small.resident) <= len(large.resident)
    for tiers in (small, large):
        assert len(tiers.streamed) != 1
        assert tiers.far == sum(nbytes(shape, [layer]) for layer in tiers.streamed)
    assert not Tiers.within(shape, 10**9).streamed


def test_a_bound_below_two_layers_buffers_is_refused_with_both_numbers(catalogue: Catalogue) -> None:
    least = OffloadedStore().memory(SHAPE).device
    assert least == 2 * 4 * 20 * (16 + 12) + 16
    assert OffloadedStore(least).problems(SHAPE) == []
    assert OffloadedStore(least - 1).problems(SHAPE) == [
        "device_bytes is 4,495, but the buffers of two layers take 4,496 bytes; allow that, or leave it out"
    ]
    model = load_model(CASES / "llada-0", "cpu", catalogue=catalogue)
    short = {"gen_length": 8, "block_length": 8}
    config = catalogue.configure("es-dllm", settings={**short, "cache": {"name": "offloaded", "device_bytes": 7}})
    engine = Engine.build(model, config, catalogue)
    with pytest.raises(UnavailableError, match=r"'offloaded' cannot serve here: device_bytes is 7, but .* take \d"):
        engine.generate([[1, 2, 3]])
    config = catalogue.configure("es-dllm", settings={**short, "cache": {"name": "offloaded", "device_bytes": 0}})
    with pytest.raises(ConfigError, match=r"cache.*device_bytes.*0"):
        Engine.build(model, config, catalogue)


def test_a_compiled_step_and_a_device_it_does_not_know_are_refused() -> None:
    assert OffloadedStore().problems(evolve(SHAPE, compiled=True)) == [
        "it moves layers while a step runs, which a compiled step cannot; set compile = false"
    ]
    found = OffloadedStore().problems(evolve(SHAPE, device=torch.device("mps")))
    assert found == ["the model is on mps; it serves models on CUDA devices and on the CPU"]


def test_a_closed_cache_says_so_and_bears_a_second_closing() -> None:
    cache = OffloadedStore().allocate(SHAPE)
    cache.close()
    cache.close()
    with pytest.raises(EsdllmError, match="this cache was closed; allocate another"):
        cache.reset()
    with pytest.raises(EsdllmError, match="this cache was closed; allocate another"):
        cache.recall(1, "hidden", torch.zeros(2, 1, dtype=torch.int64))


CHECKPOINTS = [f"{family}-{number}" for family in ("llada", "dream") for number in range(3)]
PRESETS = ("es-dllm", "dual-cache", "prefix-cache", "es-dllm-parallel")
QUICK = {("llada-1", "es-dllm"), ("dream-1", "es-dllm"), ("dream-2", "prefix-cache")}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "preset"),
    [
        pytest.param(name, preset, marks=[] if (name, preset) in QUICK else [pytest.mark.full])
        for name in CHECKPOINTS
        for preset in PRESETS
    ],
)
def test_whole_generations_are_dense_s_token_for_token(name: str, preset: str, catalogue: Catalogue) -> None:
    model = load_model(CASES / name, "cpu", catalogue=catalogue)
    over = {"gen_length": 16, "block_length": 8, "early_stop": False, **MODES[preset]}
    for padded in (False, True):
        found = {}
        for store in ("dense", "offloaded", "disk"):
            config = catalogue.configure(preset, settings={**over, "cache": store})
            found[store] = Engine.build(model, config, catalogue).generate(prompts(padded))
        assert torch.equal(found["offloaded"].tokens, found["dense"].tokens)
        assert torch.equal(found["disk"].tokens, found["dense"].tokens)


@pytest.mark.slow
@pytest.mark.parametrize("site", ["hidden", "query", "key", "value"])
def test_a_generation_whose_transfers_come_as_late_as_may_be_is_dense_s(
    site: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(CASES / "llada-0", "cpu", catalogue=catalogue)
    over = {"gen_length": 16, "block_length": 8, **MODES["es-dllm"], "importance": {"site": site}}
    found = []
    for store in ("dense", "offloaded"):
        engine = Engine.build(model, catalogue.configure("es-dllm", settings={**over, "cache": store}), catalogue)
        monkeypatch.setattr("esdllm_backends.cache.offloaded.PlainTransfers", LateTransfers)
        found.append(engine.generate(prompts(True)).tokens)
    assert torch.equal(*found)


@pytest.mark.slow
def test_a_generation_with_an_offloaded_cache_reads_nothing_from_the_device(catalogue: Catalogue) -> None:
    """On the meta device any read raises."""
    model = load_model(CASES / "llada-0", "meta", catalogue=catalogue)
    over = {"gen_length": 16, "block_length": 8, "early_stop": False, **MODES["es-dllm"], "cache": "offloaded"}
    result = Engine.build(model, catalogue.configure("es-dllm", settings=over), catalogue).generate(prompts(False))
    assert result.tokens.is_meta
    assert result.forwards == 16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@given(made=runs())
@examples(60)
def test_on_a_gpu_an_offloaded_cache_gives_what_dense_gives(made: tuple[CacheShape, list[Step | None]]) -> None:
    shape, script = made
    script = [step and step._replace(positions=[x.cuda() for x in step.positions]) for step in script]
    on_gpu = evolve(shape, device=torch.device("cuda"))
    expected = list(play(DenseStore().allocate(on_gpu), on_gpu, script))
    found = list(play(OffloadedStore().allocate(on_gpu), on_gpu, script))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
