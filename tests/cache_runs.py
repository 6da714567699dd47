"""Runs that cache stores are put through: what a step does to a cache, and all that the cache gives back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor

from esdllm import Cache, CacheShape, CacheWrite, Phase

SHAPE = CacheShape(2, 10, 5, 2, 4, 12, (1, 3), torch.float32, torch.device("cpu"))


class Step(NamedTuple):
    """What one step does to a cache: at every layer, the positions alive and the numbers of all positions."""

    site: Any
    positions: list[Tensor]
    seed: int


@st.composite
def runs(draw: st.DrawFn) -> tuple[CacheShape, list[Step | None]]:
    """Draw a shape and the steps of some runs; None is a reset."""
    rows, length, n_layers = draw(st.integers(1, 2)), draw(st.integers(1, 7)), draw(st.integers(1, 6))
    remembered = draw(st.sets(st.integers(0, n_layers - 1), max_size=2))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    shape = CacheShape(rows, length, n_layers, 2, 4, 12, tuple(sorted(remembered)), dtype, torch.device("cpu"))
    return shape, draw(st.lists(st.none() | steps(shape), min_size=1, max_size=6))


@st.composite
def steps(draw: st.DrawFn, shape: CacheShape) -> Step:
    """Draw a step: a window of which fewer and fewer positions survive, its head perhaps the same position repeated."""
    seed = draw(st.integers(0, 2**31))
    make = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(shape.length, generator=make) for _ in range(shape.rows)])
    if draw(st.booleans()):  # a clamped window
        order = order.clamp(min=draw(st.integers(0, shape.length - 1)))
    counts = draw(st.lists(st.integers(1, shape.length), min_size=shape.n_layers, max_size=shape.n_layers))
    alive = [order[:, :count] for count in sorted(counts, reverse=True)]
    return Step(draw(st.sampled_from(["hidden", "query", "key", "value"])), alive, seed)


def play(cache: Cache, shape: CacheShape, script: list[Step | None]) -> Iterator[Tensor]:
    """Yield a copy of all that a cache gives while it goes through the steps."""
    cache.reset()
    for step in script:
        if step is None:
            cache.reset()
            continue
        for layer, positions in enumerate(step.positions):
            made = torch.Generator().manual_seed(step.seed + layer)
            remembers = layer in shape.remembered and step.site in ("hidden", "query")
            if step.site in ("key", "value"):
                yield cache.recall(layer, step.site, positions).clone()
            if remembers and step.site == "query":
                yield from _compare(cache, shape, step, layer, made)
            keys, values = (_numbers(shape, positions, made, shape.n_kv_heads, shape.head_dim) for _ in range(2))
            read = cache.update(
                CacheWrite(layer, positions, keys, keys, values, None, positions, Phase.ALL, torch.tensor([0, 1]))
            )
            assert read.bias is None
            assert read.padding is not None
            assert read.padding.tolist() == [0, 1]
            yield read.keys.clone()
            yield read.values.clone()
            if remembers and step.site == "hidden":
                yield from _compare(cache, shape, step, layer, made)


def _compare(cache: Cache, shape: CacheShape, step: Step, layer: int, made: torch.Generator) -> Iterator[Tensor]:
    positions = step.positions[layer]
    yield cache.recall(layer, step.site, positions).clone()
    survivors = positions[:, : -(-positions.shape[1] // 2)]
    cache.remember(layer, survivors, _numbers(shape, survivors, made, shape.features))


def _numbers(shape: CacheShape, positions: Tensor, made: torch.Generator, *size: int) -> Tensor:
    """Return what stands at positions: equal where a position is named twice."""
    everywhere = torch.randn(shape.rows, shape.length, *size, generator=made).to(positions.device, shape.dtype)
    return torch.stack([row[at] for row, at in zip(everywhere, positions, strict=True)])


def full_step(seed: int, count: int = 10) -> Step:
    return Step("hidden", [torch.arange(count).expand(2, -1)] * 5, seed)
