"""The check of cache stores: what was written is read back."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import attrs
import torch
from torch import Tensor

from esdllm.interfaces import Cache, CacheStore, SlottedCache
from esdllm.plan import Phase
from esdllm.plugins.capabilities import closing, slotted
from esdllm.runtime.plain import plain_attention
from esdllm.runtime.rehearsal import store_fault
from esdllm.runtime.samples import SPEC, cache_shape, cache_write, generator
from esdllm.testing.contracts.generation import check_generation
from esdllm.testing.contracts.laws import law, member_laws, of_rows
from esdllm.testing.memory import TensorMemory
from esdllm.views import CacheShape, CacheWrite, KeyValue, Memory

__all__ = ["check_cache_store", "slot_laws"]


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
    if store.persistent:
        _remembering_laws(who, store, shape, tolerance)
        if Phase.KEPT in phases:
            _kept_laws(who, store, shape, tolerance)
    slot_laws(who, store, shape, tolerance)
    _step_laws(who, store, shape)
    check_generation(cache=store)


def _all(shape: CacheShape) -> Tensor:
    """Return (R, L), every column."""
    return torch.arange(shape.length).expand(shape.rows, -1)


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
    _close(cache)
    told = sum(attrs.astuple(memory))
    law(held <= told, f"{who} takes {held} bytes, and told of {told}")


def _close(cache: Any) -> None:
    """Close a cache that can be closed, twice."""
    if (closable := closing(cache)) is not None:
        closable.close()
        closable.close()


def _reading_laws(
    who: str, store: CacheStore, shape: CacheShape, padding: tuple[int, ...] | None, tolerance: float
) -> None:
    """Write everything, then some: attention reads the newest of all positions, and each is recalled."""
    cache = store.allocate(shape)
    for layer in range(shape.n_layers):
        full = cache_write(shape, layer, _all(shape), seed=layer, phase=Phase.ALL, padding=padding)
        held = KeyValue(full.keys.clone(), full.values.clone(), full.bias)
        _attention_law(who, cache.update(full), full, held, tolerance)
        if not store.persistent:
            continue
        part = cache_write(shape, layer, _some(shape), seed=100 + layer, phase=Phase.ALL, padding=padding)
        index = part.positions[..., None, None].expand_as(part.keys)
        held = KeyValue(held.keys.scatter(1, index, part.keys), held.values.scatter(1, index, part.values), full.bias)
        _attention_law(who, cache.update(part), part, held, tolerance)
        for site, expected in (("key", held.keys), ("value", held.values)):
            found = cache.recall(layer, site, _all(shape)).view_as(expected)  # type: ignore[arg-type]
            what = f"{site}s of layer {layer}, all written and some written again,"
            _equal_law(f"{who}: {what}", found, expected, tolerance)
    _close(cache)


def _equal_law(what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    allowed = tolerance * expected.abs().amax(-1, keepdim=True)
    off = float(((found - expected).abs() - allowed).max())
    law(off <= 0, f"{what} come back off by {off:.3g} more than the tolerance of {tolerance} times their largest")


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
        f"written, padding {None if write.padding is None else tuple(write.padding.tolist())} left out",
    )


def _remembering_laws(who: str, store: CacheStore, shape: CacheShape, tolerance: float) -> None:
    for site, features in (("hidden", SPEC.hidden), ("query", SPEC.n_heads * SPEC.head_dim)):
        asked = attrs.evolve(shape, features=features, remembered=(1, 3))
        cache = store.allocate(asked)
        for layer in range(shape.n_layers):
            cache.update(cache_write(asked, layer, _all(asked), seed=layer, phase=Phase.ALL))
            if layer in asked.remembered:
                x = torch.randn(asked.rows, asked.length, features, generator=generator(layer))
                cache.remember(layer, _all(asked), x)
                some = _some(asked)[:, 1:]
                new = torch.randn(asked.rows, some.shape[1], features, generator=generator(50 + layer))
                cache.remember(layer, some, new)
                expected = x.scatter(1, some.unsqueeze(-1).expand_as(new), new)
                found = cache.recall(layer, site, _all(asked))  # type: ignore[arg-type]
                _equal_law(f"{who}: {site} tensors remembered at layer {layer}", found, expected, tolerance)
        _close(cache)


def _kept_laws(who: str, store: CacheStore, shape: CacheShape, tolerance: float) -> None:
    """After a SELECT step the block's own positions are read at a KEPT one."""
    cache = store.allocate(shape)
    for phase in (Phase.SELECT, Phase.KEPT):
        for layer in range(shape.n_layers):
            block = _all(shape)[:, -4:] if phase is Phase.KEPT else _all(shape)
            write = cache_write(shape, layer, block, seed=layer + 10 * (phase is Phase.KEPT), phase=phase)
            read = cache.update(write)
            if phase is Phase.KEPT:
                far = (write.values.unsqueeze(2) - read.values.unsqueeze(1)).abs().amax((-1, -2)).amin(2)
                allowed = 1e-5 + tolerance * float(write.values.abs().max())
                law(bool((far <= allowed).all()), f"{who}: a KEPT step at layer {layer} does not read the block's own")
    _close(cache)


def slot_laws(who: str, store: CacheStore, shape: CacheShape, tolerance: float) -> None:
    """Return if slots side by side are each as a cache of its own, and stay so when others are written or forgotten.

    Raises:
        AssertionError: they are not; says where.
    """
    shape = shape if store.persistent else attrs.evolve(shape, remembered=())
    asked = attrs.evolve(shape, rows=5, slotted=True)
    if store.problems(asked):
        return
    cache = store.allocate(asked)
    if (slots := slotted(cache)) is None:  # which the engine says where slots are asked for
        _close(cache)
        return
    phases = list(dict.fromkeys(store.phase(step) for step in range(12)))
    seats: list[tuple[slice | Tensor, int, int]] = [
        (slice(1, 3), 2, shape.length),
        (torch.tensor([4, 0]), 2, shape.length - 3),
        (slice(3, 4), 1, shape.length - 1),
    ]
    beside = []
    for number, (rows, count, length) in enumerate(seats):
        small = attrs.evolve(shape, rows=count, length=length)
        mine, alone = slots.slots(rows, length), store.allocate(small)
        for age in range(2):  # the second time after rows that were there before
            mine.reset()
            alone.reset()
            if store.persistent:
                _key_laws(f"{who}: keys of slots {rows} that were reset", mine, alone, small, tolerance)
            for phase in phases:
                seed = 1000 * number + 100 * age + 10 * phases.index(phase)
                _same_law(f"{who}: slots {rows}", mine, alone, small, phase, seed)
        beside.append((mine, alone, small))
    if store.persistent:
        for mine, alone, small in beside:
            _key_laws(f"{who}: keys of slots beside which others were written", mine, alone, small, tolerance)
    _apart_law(who, slots, shape, phases)
    for given in (cache, *(alone for _, alone, _ in beside)):
        _close(given)


def _apart_law(who: str, slots: SlottedCache, shape: CacheShape, phases: Sequence[Phase]) -> None:
    """Write to two slots in one step, and the same of each row alone to a third; a row is read the same."""
    pair = attrs.evolve(shape, rows=2)
    together, apart = (slots.slots(torch.tensor(rows), shape.length) for rows in ([0, 2], [1]))
    for row, phase in product(range(2), phases):
        if phase is not Phase.KEPT:
            together.reset()
            apart.reset()
        for layer in range(shape.n_layers):
            positions = _all(pair)[:, -4:] if phase is Phase.KEPT else _all(pair)
            write = cache_write(pair, layer, positions, seed=layer, phase=phase, padding=(2, 2))
            read, one = together.update(write), apart.update(alone := of_rows(write, [row]))
            same = torch.equal(
                plain_attention(alone.queries, of_rows(read, [row])), plain_attention(alone.queries, one)
            )
            law(same, f"{who}: a row is read otherwise at layer {layer} if another is written in the same step")


def _key_laws(what: str, mine: Cache, alone: Cache, shape: CacheShape, tolerance: float) -> None:
    """Compare the keys of slots with those of a cache of those rows alone, layer by layer."""
    for layer in range(shape.n_layers):
        found, expected = (each.recall(layer, "key", _all(shape)) for each in (mine, alone))
        _equal_law(what, found, expected, tolerance)


def _same_law(what: str, mine: Cache, alone: Cache, shape: CacheShape, phase: Phase, seed: int) -> None:
    """Write the same to slots and to a cache of those rows alone; compare what they give to be read, and remember."""
    for layer in range(shape.n_layers):
        positions = _all(shape)[:, -4:] if phase is Phase.KEPT else _all(shape)
        write = cache_write(shape, layer, positions, seed=seed + layer, phase=phase, padding=(2,) * shape.rows)
        read, expected = (plain_attention(write.queries, cache.update(write)) for cache in (mine, alone))
        law(torch.equal(read, expected), f"{what} are read otherwise at layer {layer} than a cache of those rows alone")
        if layer in shape.remembered:
            x = torch.randn(*positions.shape, shape.features, generator=generator(seed))
            for cache in (mine, alone):
                cache.remember(layer, positions, x)
            last, held = (cache.recall(layer, "hidden", _all(shape)) for cache in (mine, alone))
            law(torch.equal(last, held), f"{what} remember otherwise at layer {layer} than a cache of those rows alone")


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
        _close(cache)


def _write(shape: CacheShape) -> CacheWrite:
    return cache_write(shape, 1, _all(shape), seed=1, phase=Phase.ALL)


def _one_layer(cache: Cache, write: CacheWrite, persistent: bool) -> tuple[Tensor, Tensor]:
    """Do what a step does at a layer whose hidden states are remembered."""
    read = cache.update(write)
    if not persistent:
        return read.keys, read.values
    last = cache.recall(write.layer, "hidden", write.positions)
    cache.remember(write.layer, write.positions, last + 1)
    return read.keys, last
