"""Logits of a model under every mask of attention that is recorded: the whole canvas, a block over cached keys, a key write."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from esdllm.interfaces import ModelAdapter
from esdllm.runtime.plain import layers
from esdllm.views import KeyValue

__all__ = ["recorded_logits"]


class _Pass(NamedTuple):
    """What a pass gave."""

    logits: Tensor
    """(B, N, V)"""
    keys: list[KeyValue]
    """every layer's, (B, K, G, D): those that were there before, and then the pass' own"""


def recorded_logits(model: ModelAdapter, recorded: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the name of each tensor of logits that is recorded, what the model gives, and what is recorded, (B, N, V) float32.

    What the names mean is told in `tests/conformance-families/README.md`; a name that is not told there is passed over.
    """
    tokens = recorded["tokens"].to(model.device)
    for name in sorted(recorded.keys() & _KINDS.keys()):
        expected = recorded[name]
        found = _KINDS[name](model, tokens, recorded).cpu()
        if name == "logits_bidirectional_padded":  # rows of hidden positions mean nothing
            seen = recorded["attention_mask_padded"].bool()
            found, expected = found[seen], expected[seen]
        yield name, found, expected


def _run(
    model: ModelAdapter, tokens: Tensor, sees: Tensor, past: Sequence[KeyValue] = (), start: int | None = None
) -> _Pass:
    """Return what tokens (B, N) give over the keys of `past`, where position i sees key j if `sees` (N, K) or (B, N, K) says so.

    They stand at the positions from `start` on; behind the keys of `past` if not told.
    """
    kept, hidden = list[KeyValue](), model.embed(tokens)
    begin = (past[0].keys.shape[1] if past else 0) if start is None else start

    def attend(queries: Tensor, own: KeyValue) -> Tensor:
        before = past[len(kept)] if past else KeyValue(own.keys[:, :0], own.values[:, :0])
        keys, values = torch.cat([before.keys, own.keys], 1), torch.cat([before.values, own.values], 1)
        kept.append(KeyValue(keys, values))
        return _attention(queries, keys, values, sees)

    positions = torch.arange(begin, begin + tokens.shape[1], device=tokens.device).expand(tokens.shape)
    for layer, _ in layers(model, hidden, positions, attend=attend):
        hidden = layer
    return _Pass(model.logits(hidden), kept)


def _attention(queries: Tensor, keys: Tensor, values: Tensor, sees: Tensor) -> Tensor:
    """Return attention (B, N, H, D) by its formula, over keys (B, K, G, D) that a mask (N, K) or (B, N, K) lets see."""
    share = queries.shape[2] // keys.shape[2]
    keys, values = keys.repeat_interleave(share, 2), values.repeat_interleave(share, 2)
    scores = torch.einsum("bnhd,bkhd->bhnk", queries, keys) * queries.shape[-1] ** -0.5
    hidden = ~sees.to(queries.device)
    scores = scores.masked_fill(hidden[:, None] if hidden.dim() == 3 else hidden, float("-inf"))
    return torch.einsum("bhnk,bkhd->bnhd", scores.softmax(-1), values)


def _blocks(length: int, size: int) -> Tensor:
    """Return which positions each sees (L, L) where those of a block see each other and all blocks before; 1 is causal."""
    block = torch.arange(length) // size
    return block[:, None] >= block


def _everything(tokens: Tensor, past: int = 0) -> Tensor:
    return torch.ones(tokens.shape[1], past + tokens.shape[1], dtype=torch.bool)


def _bidirectional(model: ModelAdapter, tokens: Tensor, recorded: Mapping[str, Tensor]) -> Tensor:
    return _run(model, tokens, _everything(tokens)).logits


def _padded(model: ModelAdapter, tokens: Tensor, recorded: Mapping[str, Tensor]) -> Tensor:
    seen = recorded["attention_mask_padded"].bool()
    return _run(model, tokens, seen[:, None].expand(-1, tokens.shape[1], -1)).logits


def _block_causal(model: ModelAdapter, tokens: Tensor, recorded: Mapping[str, Tensor]) -> Tensor:
    return _run(model, tokens, _blocks(tokens.shape[1], int(recorded["block_length"]))).logits


def _causal(model: ModelAdapter, tokens: Tensor, recorded: Mapping[str, Tensor]) -> Tensor:
    return _run(model, tokens, _blocks(tokens.shape[1], 1)).logits


def _written(model: ModelAdapter, tokens: Tensor, recorded: Mapping[str, Tensor]) -> tuple[list[KeyValue], Tensor]:
    """Return the keys of the prefix, written as the family writes them, and the block's tokens behind it (B, b)."""
    size, length, attention = int(recorded["block_length"]), int(recorded["prefix_length"]), model.spec.attention
    written = size if attention is None else min(attention.write_size, size)
    prefix = _run(model, tokens[:, :length], _blocks(length, written))
    return prefix.keys, tokens[:, length : length + size]


def _block_step(model: ModelAdapter, tokens: Tensor, recorded: Mapping[str, Tensor]) -> Tensor:
    past, block = _written(model, tokens, recorded)
    return _run(model, block, _everything(block, past[0].keys.shape[1]), past).logits


def _block_write(model: ModelAdapter, tokens: Tensor, recorded: Mapping[str, Tensor]) -> Tensor:
    past, block = _written(model, tokens, recorded)
    length = past[0].keys.shape[1]
    return _run(model, block, _blocks(length + block.shape[1], 1)[length:], past).logits


def _sub_block_step(model: ModelAdapter, tokens: Tensor, recorded: Mapping[str, Tensor]) -> Tensor:
    """Return the logits of some tokens of a block, over the prefix' keys and those that the block's others had before."""
    past, block = _written(model, tokens, recorded)
    start, part = int(recorded["sub_block_start"]), recorded["sub_block_tokens"].to(tokens.device)
    length, stop = past[0].keys.shape[1], start + part.shape[1]
    whole = _run(model, block, _everything(block, length), past).keys
    behind = block.shape[1] - stop
    rest = [
        KeyValue(*(torch.cat([x[:, : length + start], x[:, length + stop :]], 1) for x in one[:2])) for one in whole
    ]
    return _run(model, part, _everything(part, length + start + behind), rest, length + start).logits


_KINDS: Mapping[str, Callable[[ModelAdapter, Tensor, Mapping[str, Tensor]], Tensor]] = {
    "logits_bidirectional": _bidirectional,
    "logits_bidirectional_padded": _padded,
    "logits_block_causal": _block_causal,
    "logits_causal": _causal,
    "logits_block_step": _block_step,
    "logits_block_write": _block_write,
    "logits_sub_block_step": _sub_block_step,
}
"""How each tensor of logits is computed."""
