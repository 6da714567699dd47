"""The check of cache stores: what was written is read back."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from esdllm.interfaces import Cache, CacheStore
from esdllm.plan import Phase
from esdllm.runtime.plain import plain_attention
from esdllm.runtime.rehearsal import store_fault
from esdllm.runtime.samples import SPEC, cache_shape, cache_write, generator
from esdllm.testing.contracts.generation import check_generation
from esdllm.testing.contracts.laws import law, member_laws
from esdllm.testing.contracts.rows import padding_laws, slot_laws
from esdllm.testing.contracts.stored import all_columns, closed_twice, equal_law, recalled
from esdllm.testing.memory import TensorMemory
from esdllm.views import CacheShape, CacheWrite, KeyValue, Memory, Site

__all__ = ["check_cache_store"]


def check_cache_store(store: CacheStore, *, tolerance: float = 0.0) -> None:
    """Check a cache store, by itself and in whole generations of a tiny model.

    What was written last is recalled at every position, and what was not written since stays; attention over what it gives
    reads every position but padding, and in a KEPT phase the block; what is remembered is recalled; a cache that was reset
    is as a new one; it takes no more memory than foretold, and closing it twice does no harm. Numbers may be off by
    `tolerance` times the largest of their vector: 0 for a store that is exact, which then decodes as the preset's does.
    Where it serves rows that come and go, some of its rows are as a cache of those rows alone, and the others stay as they are.
    A store that says that it serves the meta device reads nothing from it; one that says that it serves a compiled step
    compiles into one graph. One that is not persistent hands on what it is given, and nothing else is asked of it.

    Raises:
        AssertionError: a law fails; says which.
    """
    who, shape = member_laws("cache", store), cache_shape()
    law(isinstance(store.persistent, bool), f"{who}: persistent = {store.persistent!r}; give a bool")
    phases = [store.phase(step) for step in range(12)]
    law(all(isinstance(phase, Phase) for phase in phases), f"{who}.phase gave {phases}; give a Phase")
    law(phases == [store.phase(step) for step in range(12)], f"{who}.phase differs when asked again")
    _memory_laws(who, store, shape)
    for padding in (None, (0, 5)):
        _reading_laws(who, store, shape, padding, tolerance)
    law(not (fault := store_fault(store, shape)), f"{who} {fault}")
    padding_laws(who, store, shape)
    if store.persistent:
        _remembering_laws(who, store, shape, tolerance)
        if Phase.KEPT in phases:
            _kept_laws(who, store, shape, tolerance)
    slot_laws(who, store, shape, tolerance)
    _step_laws(who, store, shape)
    check_generation(cache=store)


def _some(shape: CacheShape) -> Tensor:
    """Return (R, 6) columns in no order, the first twice, as a clamped window has them."""
    order = torch.stack([torch.randperm(shape.length, generator=generator(row)) for row in range(shape.rows)])
    return torch.cat([order[:, :1], order[:, :5]], dim=1)


def _memory_laws(who: str, store: CacheStore, shape: CacheShape) -> None:
    with TensorMemory() as taken:
        memory = store.memory(shape)
    right = isinstance(memory, Memory) and all(type(n) is int and n >= 0 for n in attrs.astuple(memory))
    law(right, f"{who}.memory gave {memory!r}; give a Memory of whole numbers")
    law(taken.peak == 0, f"{who}.memory allocates {taken.peak} bytes; it only tells")
    problems = store.problems(shape)
    law(problems == [], f"{who} has problems on the CPU: {problems}")
    with TensorMemory() as taken:
        cache = store.allocate(shape)
        held = taken.held
    closed_twice(cache)
    told = sum(attrs.astuple(memory))
    law(held <= told, f"{who} takes {held} bytes, and told of {told}")


def _reading_laws(
    who: str, store: CacheStore, shape: CacheShape, padding: tuple[int, ...] | None, tolerance: float
) -> None:
    """Write everything, then some: attention reads the newest of all positions, and each is recalled."""
    cache = store.allocate(shape)
    for layer in range(shape.n_layers):
        full = cache_write(shape, layer, all_columns(shape), seed=layer, phase=Phase.ALL, padding=padding)
        held = KeyValue(full.keys.clone(), full.values.clone(), full.bias)
        _attention_law(who, cache.update(full), full, held, tolerance)
        if not store.persistent:
            continue
        part = cache_write(shape, layer, _some(shape), seed=100 + layer, phase=Phase.ALL, padding=padding)
        index = part.positions[..., None, None].expand_as(part.keys)
        held = KeyValue(held.keys.scatter(1, index, part.keys), held.values.scatter(1, index, part.values), full.bias)
        _attention_law(who, cache.update(part), part, held, tolerance)
        sites: tuple[tuple[Site, Tensor], ...] = (("key", held.keys), ("value", held.values))
        for site, expected in sites:
            found = recalled(cache, layer, site, all_columns(shape), full.offsets).view_as(expected)
            what = f"{site}s of layer {layer}, all written and some written again,"
            equal_law(f"{who}: {what}", found, expected, tolerance)
    closed_twice(cache)


def _attention_law(who: str, read: KeyValue, write: CacheWrite, held: KeyValue, tolerance: float) -> None:
    """Compare attention over what a store gives with attention over what it was given, whatever the order of the keys."""
    heads = (*write.keys.shape[:1], -1, *write.keys.shape[2:])
    shapes = [tuple(x.shape) for x in (read.keys, read.values)]
    right = shapes[0] == shapes[1] and read.keys.shape == read.keys.reshape(heads).shape
    law(right, f"{who} gave keys and values of {shapes}; give (R, K, G, D)")
    found, expected = plain_attention(write.queries, read), plain_attention(write.queries, held)
    allowed = 1e-5 + 20 * tolerance * float(held.values.abs().max())
    off = float((found - expected).abs().max())
    law(
        off <= allowed,
        f"{who}: attention over what it gave at layer {write.layer} is off by {off:.3g} from attention over all that was "
        f"written{_padding_cause(write, read)}",
    )


def _padding_cause(write: CacheWrite, read: KeyValue) -> str:
    """Return what padding has to do with what is off, as the end of a sentence; empty if there is none."""
    if write.padding is None:
        return ""
    padded = f", and the first {tuple(write.padding.tolist())} columns of its rows are padding, which is never read"
    if read.bias is None:
        return f"{padded}: pass on write.bias and write.padding in the KeyValue"
    return f"{padded}, nor may it change what is held of other columns: write.offsets says where each row begins"


def _remembering_laws(who: str, store: CacheStore, shape: CacheShape, tolerance: float) -> None:
    sizes: tuple[tuple[Site, int], ...] = (("hidden", SPEC.hidden), ("query", SPEC.n_heads * SPEC.head_dim))
    for site, features in sizes:
        asked = attrs.evolve(shape, features=features, remembered=(1, 3))
        cache = store.allocate(asked)
        for layer in range(shape.n_layers):
            cache.update(cache_write(asked, layer, all_columns(asked), seed=layer, phase=Phase.ALL))
            if layer in asked.remembered:
                x = torch.randn(asked.rows, asked.length, features, generator=generator(layer))
                cache.remember(layer, all_columns(asked), x)
                some = _some(asked)[:, 1:]
                new = torch.randn(asked.rows, some.shape[1], features, generator=generator(50 + layer))
                cache.remember(layer, some, new)
                expected = x.scatter(1, some.unsqueeze(-1).expand_as(new), new)
                found = recalled(cache, layer, site, all_columns(asked))
                equal_law(f"{who}: {site} tensors remembered at layer {layer}", found, expected, tolerance)
        closed_twice(cache)


def _kept_laws(who: str, store: CacheStore, shape: CacheShape, tolerance: float) -> None:
    """After a SELECT step the block's own positions are read at a KEPT one."""
    cache = store.allocate(shape)
    for phase in (Phase.SELECT, Phase.KEPT):
        for layer in range(shape.n_layers):
            block = all_columns(shape)[:, -4:] if phase is Phase.KEPT else all_columns(shape)
            write = cache_write(shape, layer, block, seed=layer + 10 * (phase is Phase.KEPT), phase=phase)
            read = cache.update(write)
            if phase is Phase.KEPT:
                far = (write.values.unsqueeze(2) - read.values.unsqueeze(1)).abs().amax((-1, -2)).amin(2)
                allowed = 1e-5 + tolerance * float(write.values.abs().max())
                law(bool((far <= allowed).all()), f"{who}: a KEPT step at layer {layer} does not read the block's own")
    closed_twice(cache)


def _step_laws(who: str, store: CacheStore, shape: CacheShape) -> None:
    """Within a step nothing is read from the device, and a store that serves compiled steps makes one graph."""
    meta = attrs.evolve(shape, device=torch.device("meta"))
    if not store.problems(meta):
        try:
            _one_layer(store.allocate(meta), _write(meta), store.persistent)
        except Exception as error:
            raise AssertionError(
                f"{who} reads the device: on the meta device it raised {type(error).__name__}: {error}"
            ) from error
    compiled = attrs.evolve(shape, compiled=True)
    if not store.problems(compiled):
        cache = store.allocate(compiled)
        torch._dynamo.reset()
        try:
            torch.compile(_one_layer, backend="eager", fullgraph=True)(cache, _write(compiled), store.persistent)
        except Exception as error:
            raise AssertionError(
                f"{who} does not compile into one graph: {type(error).__name__}: {error}; say so in `problems` of a shape "
                "that is compiled"
            ) from error
        finally:
            torch._dynamo.reset()
        closed_twice(cache)


def _write(shape: CacheShape) -> CacheWrite:
    return cache_write(shape, 1, all_columns(shape), seed=1, phase=Phase.ALL)


def _one_layer(cache: Cache, write: CacheWrite, persistent: bool) -> tuple[Tensor, Tensor]:
    """Do what a step does at a layer whose hidden states are remembered."""
    read = cache.update(write)
    if not persistent:
        return read.keys, read.values
    last = cache.recall(write.layer, "hidden", write.positions)
    cache.remember(write.layer, write.positions, last + 1)
    return read.keys, last
