"""Views filled with made-up numbers, the same for the same seed: for rehearsals of components, checks and strategies."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor

from esdllm.views import (
    BlockView,
    CacheShape,
    CacheWrite,
    EndView,
    ImportanceView,
    KeyValue,
    ModelSpec,
    SampleView,
    Signal,
    UnmaskingView,
)

__all__ = [
    "SPEC",
    "block_view",
    "cache_shape",
    "cache_write",
    "generator",
    "importance_view",
    "key_value",
    "padding_bias",
    "sample_view",
    "unmasking_view",
]

SPEC = ModelSpec(
    family="made-up",
    n_layers=4,
    hidden=32,
    n_heads=4,
    n_kv_heads=2,
    head_dim=8,
    vocab=64,
    context=256,
    mask_id=63,
    eos_id=62,
    intermediate=48,
)
"""A small model's geometry, with grouped queries."""


def generator(seed: int) -> torch.Generator:
    """Return a source of numbers on the host."""
    return torch.Generator().manual_seed(seed)


def importance_view(
    seed: int = 0,
    rows: int = 3,
    window: int = 9,
    features: int = 8,
    dtype: torch.dtype = torch.float32,
    memory: int = 0,
    signals: Collection[Signal] = (),
) -> ImportanceView:
    """Return what a scorer may read: positions in no order, some undecided with and without confidence, some committed.

    Of each position `memory` numbers are remembered, all 0; `signals` are told too.
    """
    draw = generator(seed)
    positions = torch.stack([torch.randperm(2 * window, generator=draw)[:window] for _ in range(rows)])
    undecided = torch.rand(rows, window, generator=draw) < 0.6
    known = undecided & (torch.rand(rows, window, generator=draw) < 0.8)
    x = torch.randn(rows, window, features, generator=draw)
    drift = torch.randn(rows, window, features, generator=draw) * torch.rand(rows, window, 1, generator=draw)
    beyond = {name: torch.rand(rows, window, generator=generator(seed + 1)) * known for name in sorted(signals)}
    return ImportanceView(
        layer=1,
        x=x.to(dtype),
        last=(x + drift).to(dtype),
        confidence=torch.rand(rows, window, generator=draw) * known,
        undecided=undecided,
        committed=~undecided & (torch.rand(rows, window, generator=draw) < 0.4),
        positions=positions,
        seeds=torch.randint(0, 2**40, (rows,), generator=draw),
        step=torch.arange(5, 5 + rows),
        memory=torch.zeros(rows, window, memory) if memory else None,
        **beyond,
    )


def sample_view(seed: int = 0, rows: int = 3, window: int = 7, vocab: int = 11, sharp: float = 3.0) -> SampleView:
    """Return what a sampler may read; `sharp` is the logits' standard deviation."""
    draw = generator(seed)
    return SampleView(
        raw=sharp * torch.randn(rows, window, vocab, generator=draw),
        seeds=torch.randint(0, 2**40, (rows,), generator=draw),
        step=torch.arange(3, 3 + rows),
        positions=torch.arange(4, 4 + window).expand(rows, -1),
    )


def unmasking_view(
    seed: int = 0,
    rows: int = 3,
    window: int = 9,
    vocab: int = 7,
    sharp: float = 4.0,
    quota: int = 2,
    padding: int = 0,
    memory: int = 0,
    revokes: bool = False,
    edits: bool = False,
) -> UnmaskingView:
    """Return what an unmasking policy may read, on a canvas with three columns before and after, and `padding` at its head.

    Of each position `memory` numbers are remembered, all 0; with `revokes` some may be put back, with `edits` replaced.
    """
    draw = generator(seed)
    logits = sharp * torch.randn(rows, window, vocab, generator=draw)
    confidence, tokens = logits.softmax(-1).max(-1)
    eligible = torch.rand(rows, window, generator=draw) < 0.7
    positions = torch.arange(3, 3 + window).expand(rows, -1)
    columns = positions + padding
    undecided = torch.zeros(rows, padding + window + 6, dtype=torch.bool).scatter(1, columns, eligible)
    undecided[:, -3:] = True  # a later block
    previous = torch.where(torch.rand(rows, window, generator=draw) < 0.5, tokens, -1)
    held = torch.randint(0, vocab - 1, (rows, window), generator=draw).masked_fill(eligible, vocab - 1)
    revocable = ~eligible & (torch.rand(rows, window, generator=draw) < 0.7)
    return UnmaskingView(
        raw=logits,
        tokens=tokens,
        confidence=confidence,
        eligible=eligible,
        positions=positions,
        previous_tokens=previous,
        previous_confidence=torch.rand(rows, window, generator=draw) * (previous >= 0),
        quota=torch.full((rows,), quota),
        step=torch.arange(3, 3 + rows),
        seeds=torch.randint(0, 2**40, (rows,), generator=draw),
        columns=columns,
        undecided=undecided,
        memory=torch.zeros(rows, window, memory) if memory else None,
        held=held if revokes or edits else None,
        revocable=revocable if revokes else None,
        editable=revocable if edits else None,
        step_in_block=torch.arange(rows),
        block=columns,
        block_number=torch.arange(rows),
        block_length=torch.full((rows,), window),
    )


def end_view() -> EndView:
    """Return what a schedule may read that tells where blocks end: of three rows, one of which is decided up to its end."""
    draw, columns = generator(3), torch.arange(8).expand(3, -1) + torch.tensor([[4], [11], [16]])
    return EndView(
        first=torch.tensor([4, 11, 17]),
        begins=torch.tensor([4, 4, 6]),
        stops=torch.tensor([24, 24, 24]),
        ends=torch.tensor([0, 11, 20]),
        committed=torch.tensor([0, 7, 11]),
        columns=columns,
        tokens=torch.randint(0, 3, columns.shape, generator=draw),
        confidence=torch.rand(columns.shape, generator=draw),
        length=6,
    )


def block_view() -> BlockView:
    """Return what moving blocks may read: three rows in blocks of six, decided to different blocks, one with gaps."""
    undecided = torch.zeros(3, 24, dtype=torch.bool)
    undecided[0, 4:], undecided[1, 11:20], undecided[2, 17::3] = True, True, True
    return BlockView(torch.tensor([4, 11, 17]), undecided, 4, 24, 6)


def padding_bias(rows: int, keys: int, padding: Sequence[int]) -> Tensor:
    """Return (R, K), -inf at the first `padding` keys of each row and 0 at the others."""
    out = torch.arange(keys) < torch.tensor(list(padding)).unsqueeze(1)
    return torch.zeros(rows, keys).masked_fill(out, -math.inf)


def key_value(
    seed: int = 0,
    rows: int = 3,
    window: int = 5,
    keys: int = 21,
    groups: int = 2,
    each: int = 2,
    dim: int = 16,
    padding: Sequence[int] | None = None,
    holes: bool = False,
    block: int = 0,
) -> tuple[Tensor, KeyValue]:
    """Return queries (R, N, H, D) and what they read: `each` query heads a key head, the first `padding` keys of each row
    left out, or with `holes` any but the last. Queries are of blocks of `block` keys, the last of them of the last; 0 if all
    read the same.
    """
    if block:
        queries, read = key_value(seed, rows, window, keys, groups, each, dim, padding, holes)
        numbers = torch.arange(keys).expand(rows, -1) // block
        first = max(padding or [0])  # the query of a block all of which is left out would have nothing to read
        asking = numbers[:, -window:] if window <= keys else numbers[:, -1:].expand(-1, window)
        return queries, read._replace(query_blocks=asking.clamp(min=(first + block) // block), key_blocks=numbers)
    draw = generator(seed)
    queries = torch.randn(rows, window, groups * each, dim, generator=draw)
    made = torch.randn(2, rows, keys, groups, dim, generator=draw)
    if padding is not None:
        return queries, KeyValue(made[0], made[1], padding_bias(rows, keys, padding), torch.tensor(list(padding)))
    if not holes:
        return queries, KeyValue(made[0], made[1])
    out = torch.rand(rows, keys, generator=draw) < 0.4
    out[:, -1] = False
    return queries, KeyValue(made[0], made[1], torch.zeros(rows, keys).masked_fill(out, -math.inf))


def cache_shape(**over: Any) -> CacheShape:
    """Return a small shape of a cache: 2 rows of 12 columns, `SPEC`'s layers, hidden states remembered at one of them."""
    shape: dict[str, Any] = {
        "rows": 2,
        "length": 12,
        "n_layers": SPEC.n_layers,
        "n_kv_heads": SPEC.n_kv_heads,
        "head_dim": SPEC.head_dim,
        "features": SPEC.hidden,
        "remembered": (1,),
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    return CacheShape(**{**shape, **over})


def cache_write(
    shape: CacheShape, layer: int, positions: Tensor, seed: int, phase: Any, padding: Sequence[int] | None = None
) -> CacheWrite:
    """Return a layer's keys and values of positions (R, N) on the host; equal where a position is named twice.

    The block is the last four columns.
    """
    draw = generator(seed)
    sizes = (SPEC.n_heads, shape.n_kv_heads, shape.n_kv_heads)
    everywhere = [torch.randn(shape.rows, shape.length, heads, shape.head_dim, generator=draw) for heads in sizes]
    rows = torch.arange(shape.rows).unsqueeze(1)
    queries, keys, values = (x[rows, positions].to(shape.device, shape.dtype) for x in everywhere)
    bias = None if padding is None else padding_bias(shape.rows, shape.length, padding).to(shape.device, shape.dtype)
    block = torch.arange(shape.length - 4, shape.length, device=shape.device).expand(shape.rows, -1)
    told = None if padding is None else torch.tensor(list(padding), device=shape.device)
    offsets = torch.zeros(shape.rows, dtype=torch.int64, device=shape.device) if told is None else told
    return CacheWrite(layer, positions.to(shape.device), queries, keys, values, bias, block, phase, told, offsets)
