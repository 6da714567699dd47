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
    if read.bias is not None:
        weights = weights + read.bias[:, None, None]
    return torch.einsum("bhnk,bkhd->bnhd", weights.softmax(-1), values)


def layers(
    model: ModelAdapter,
    hidden: Tensor,
    positions: Tensor,
    bias: Tensor | None = None,
    attend: Callable[[Tensor, KeyValue], Tensor] = plain_attention,
) -> Iterator[tuple[Tensor, Projection]]:
    """Yield every layer's output (B, L, C) and projection, from the embedding `hidden` at positions (B, L), all computed."""
    places = model.encode(positions)
    for layer in range(model.spec.n_layers):
        made = model.project(layer, hidden, places)
        hidden = model.mix(layer, hidden, attend(made.queries, KeyValue(made.keys, made.values, bias)))
        yield hidden, made


def hidden_states(model: ModelAdapter, tokens: Tensor, positions: Tensor) -> Iterator[Tensor]:
    """Yield the embedding and then each layer's output, (B, L, C), of tokens at positions (B, L) without padding."""
    embedded = model.embed(tokens)
    yield embedded
    for hidden, _ in layers(model, embedded, positions):
        yield hidden


def full_logits(model: ModelAdapter, tokens: Tensor) -> Tensor:
    """Return logits (B, L, V) of tokens (B, L) without padding."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    *_, last = hidden_states(model, tokens, positions)
    return model.logits(last)
