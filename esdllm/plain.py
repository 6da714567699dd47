"""A plain pass: the whole canvas through every layer, attention by its formula, no cache. The oracle of everything else."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from esdllm.interfaces import ModelAdapter

__all__ = ["full_logits", "hidden_states", "plain_attention"]


def plain_attention(queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return attention (B, N, H, D) of queries (B, N, H, D) over keys and values (B, K, G, D), with bias (B, K) or none."""
    repeat = queries.shape[2] // keys.shape[2]
    keys, values = keys.repeat_interleave(repeat, dim=2), values.repeat_interleave(repeat, dim=2)
    weights = torch.einsum("bnhd,bkhd->bhnk", queries, keys) * queries.shape[-1] ** -0.5
    if bias is not None:
        weights = weights + bias[:, None, None]
    return torch.einsum("bhnk,bkhd->bnhd", weights.softmax(-1), values)


def hidden_states(model: ModelAdapter, tokens: Tensor, positions: Tensor) -> Iterator[Tensor]:
    """Yield the embedding and then each layer's output, (B, L, C), of tokens at positions (B, L) without padding."""
    hidden, places = model.embed(tokens), model.encode(positions)
    yield hidden
    for layer in range(model.spec.n_layers):
        hidden = model.mix(layer, hidden, plain_attention(*model.project(layer, hidden, places)))
        yield hidden


def full_logits(model: ModelAdapter, tokens: Tensor) -> Tensor:
    """Return logits (B, L, V) of tokens (B, L) without padding."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    *_, last = hidden_states(model, tokens, positions)
    return model.logits(last)
