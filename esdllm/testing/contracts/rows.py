"""Laws of cache stores about rows: behind padding, and side by side in slots."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import attrs
import torch
from torch import Tensor

from esdllm.interfaces import Cache, CacheStore, SlottedCache
from esdllm.plan import Phase
from esdllm.plugins.capabilities import slotted
from esdllm.runtime.plain import plain_attention
from esdllm.runtime.samples import cache_write, generator
from esdllm.testing.contracts.laws import law, of_rows
from esdllm.testing.contracts.stored import all_columns, closed_twice, equal_law, recalled
from esdllm.views import CacheShape, CacheWrite

__all__ = ["padding_laws", "slot_laws"]


def padding_laws(who: str, store: CacheStore, shape: CacheShape) -> None:
    """What stands in padding changes nothing, and a row behind padding is the row without it, whatever the store holds."""
    last = shape.n_layers - 1
    for padding in (3, 5, 7):
        whole = cache_write(
            shape, last, all_columns(shape), seed=padding, phase=Phase.ALL, padding=(padding,) * shape.rows
        )
        filler = torch.arange(shape.length).view(1, -1, 1, 1) < padding
        loud = whole._replace(keys=torch.where(filler, 1e3, whole.keys), values=torch.where(filler, 1e3, whole.values))
        short = attrs.evolve(shape, length=shape.length - padding)
        alone = whole._replace(
            positions=all_columns(short),
            queries=whole.queries[:, padding:],
            keys=whole.keys[:, padding:],
            values=whole.values[:, padding:],
            bias=None,
            block=whole.block - padding,
            padding=None,
            offsets=torch.zeros(shape.rows, dtype=torch.int64),
        )
        found = [
            _attended(store, made, write, padding) for made, write in ((shape, whole), (shape, loud), (short, alone))
        ]
        for other, what in ((found[1], "other numbers stand in the padding"), (found[2], "it stands without padding")):
            off = float((found[0] - other).abs().max())
            law(
                off <= 1e-4 * float(whole.values.abs().max()),
                f"{who}: what is read of a row behind {padding} columns of padding is off by {off:.3g} from what is read if "
                f"{what}; padding changes nothing: write.offsets says where each row begins",
            )


def _attended(store: CacheStore, shape: CacheShape, write: CacheWrite, padding: int) -> Tensor:
    """Return what the queries beyond the padding read of a new cache after one write."""
    cache = store.allocate(shape)
    read = cache.update(write)
    found = plain_attention(write.queries[:, -(shape.length - (padding if write.padding is not None else 0)) :], read)
    closed_twice(cache)
    return found


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
        closed_twice(cache)
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
        closed_twice(given)


def _apart_law(who: str, slots: SlottedCache, shape: CacheShape, phases: Sequence[Phase]) -> None:
    """Write to two slots in one step, and the same of each row alone to a third; a row is read the same."""
    pair = attrs.evolve(shape, rows=2)
    together, apart = (slots.slots(torch.tensor(rows), shape.length) for rows in ([0, 2], [1]))
    for row, phase in product(range(2), phases):
        if phase is not Phase.KEPT:
            together.reset()
            apart.reset()
        for layer in range(shape.n_layers):
            positions = all_columns(pair)[:, -4:] if phase is Phase.KEPT else all_columns(pair)
            write = cache_write(pair, layer, positions, seed=layer, phase=phase, padding=(2, 2))
            read, one = together.update(write), apart.update(alone := of_rows(write, [row]))
            same = torch.equal(
                plain_attention(alone.queries, of_rows(read, [row])), plain_attention(alone.queries, one)
            )
            law(same, f"{who}: a row is read otherwise at layer {layer} if another is written in the same step")


def _key_laws(what: str, mine: Cache, alone: Cache, shape: CacheShape, tolerance: float) -> None:
    """Compare the keys of slots with those of a cache of those rows alone, layer by layer."""
    for layer in range(shape.n_layers):
        found, expected = (recalled(each, layer, "key", all_columns(shape)) for each in (mine, alone))
        equal_law(what, found, expected, tolerance)


def _same_law(what: str, mine: Cache, alone: Cache, shape: CacheShape, phase: Phase, seed: int) -> None:
    """Write the same to slots and to a cache of those rows alone; compare what they give to be read, and remember."""
    for layer in range(shape.n_layers):
        positions = all_columns(shape)[:, -4:] if phase is Phase.KEPT else all_columns(shape)
        write = cache_write(shape, layer, positions, seed=seed + layer, phase=phase, padding=(2,) * shape.rows)
        read, expected = (plain_attention(write.queries, cache.update(write)) for cache in (mine, alone))
        law(torch.equal(read, expected), f"{what} are read otherwise at layer {layer} than a cache of those rows alone")
        if layer in shape.remembered:
            x = torch.randn(*positions.shape, shape.features, generator=generator(seed))
            for cache in (mine, alone):
                cache.remember(layer, positions, x)
            last, held = (recalled(cache, layer, "hidden", all_columns(shape)) for cache in (mine, alone))
            law(torch.equal(last, held), f"{what} remember otherwise at layer {layer} than a cache of those rows alone")
