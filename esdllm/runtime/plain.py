"""A plain pass: the whole canvas through every layer, attention by its formula, no cache. The oracle of everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from esdllm.interfaces import ModelAdapter
from esdllm.views import KeyValue, Projection

__all__ = ["full_logits", "hidden_states", "layers", "plain_attention"]


def plain_attention(queries: Tensor, read: KeyValue) -> Tensor:
    """Return attention (B, N, H, D) of queries (B, N, H, D) over keys and values (B, K, G, D)."""
    repeat = queries.shape[2] // read.keys.shape[2]
    keys, values = read.keys.repeat_interleave(repeat, dim=2), read.values.repeat_interleave(repeat, dim=2)
    weights = torch.einsum("bnhd,bkhd->bhnk", queries, keys) * queries.shape[-1] ** -0.5
    if (shifts := read.shifts()) is not None:
        weights = weights + shifts[:, None]
    return torch.einsum("bhnk,bkhd->bnhd", weights.softmax(-1), values)


def layers(
    model: ModelAdapter,
    hidden: Tensor,
    positions: Tensor,
    bias: Tensor | None = None,
    attend: Callable[[Tensor, KeyValue], Tensor] = plain_attention,
    blocks: Tensor | None = None,
) -> Iterator[tuple[Tensor, Projection]]:
    """Yield every layer's output (B, L, C) and projection, from the embedding `hidden` at positions (B, L), all computed.

    `blocks` (B, L) int64 are the numbers of the blocks that a position sees up to its own; if not told, those of the model's
    attention, counted from position 0.
    """
    places, attention = model.encode(positions), model.spec.attention
    if blocks is None and attention is not None:
        blocks = positions // attention.size
    for layer in range(model.spec.n_layers):
        made = model.project(layer, hidden, places)
        read = KeyValue(made.keys, made.values, bias, query_blocks=blocks, key_blocks=blocks)
        hidden = model.mix(layer, hidden, attend(made.queries, read))
        yield hidden, made


def hidden_states(
    model: ModelAdapter, tokens: Tensor, positions: Tensor, blocks: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield the embedding and then each layer's output, (B, L, C), of tokens at positions (B, L) without padding.

    `blocks` are as for `layers`.
    """
    embedded = model.embed(tokens)
    yield embedded
    for hidden, _ in layers(model, embedded, positions, blocks=blocks):
        yield hidden


def full_logits(model: ModelAdapter, tokens: Tensor, blocks: Tensor | None = None) -> Tensor:
    """Return logits (B, L, V) of tokens (B, L) without padding.

    A block-causal model's blocks are counted from the first token, unless `blocks` (B, L) int64 tells the number of each
    position's block: it sees the positions whose number is no higher.
    """
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    *_, last = hidden_states(model, tokens, positions, blocks)
    return model.logits(last)
