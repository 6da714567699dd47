"""What a run takes of memory, predicted from the model's geometry before anything is loaded."""

from __future__ import annotations

import torch

from esdllm.processor import logits_at_once
from esdllm.views import ModelSpec

__all__ = ["working_bytes"]

_CPU = torch.device("cpu")


def working_bytes(
    spec: ModelSpec,
    rows: int,
    window: int,
    block: int,
    dtype: torch.dtype,
    device: torch.device = _CPU,
) -> int:
    """Return the most bytes that a step takes beside weights and cache: one layer's activations, or the block's logits.

    `rows` (R) and `window` (N) are those of the widest step, `block` the positions whose logits are computed, `device` what
    computes them. Within 6 % for a decoder whose layer is that of LLaDA and Dream, at temperature 0, with an unmasking policy
    that reads confidences alone, under an attention backend that makes no (N, K) tensor; within 15 % where it has experts.
    Kernels' own scratch is not counted.
    0 if the family does not tell `intermediate`.
    """
    if not spec.inside(0):
        return 0
    layer = rows * window * _bytes_a_position(spec, dtype.itemsize)
    numbers = rows * block * spec.vocab
    logits = numbers * dtype.itemsize + min(numbers, logits_at_once(device)) * 4
    return max(layer, logits + rows * window * spec.hidden * dtype.itemsize)


def _bytes_a_position(spec: ModelSpec, itemsize: int) -> int:
    """Return what stands when a layer's feed-forward is at its widest."""
    heads, kv_heads, dim = spec.n_heads, spec.n_kv_heads, spec.head_dim
    attention = (heads + 2 * kv_heads) * dim + (heads + kv_heads) * dim + heads * dim  # projected, rotated, attended
    hidden = 3 * spec.hidden  # the layer's input, that plus attention's result, what a scorer recalls
    feed_forward = 4 * spec.intermediate  # gate and up, the gate's activation, the product
    if spec.experts is not None:
        feed_forward = max(feed_forward if len(spec.experts.layers) < spec.n_layers else 0, _routed(spec, itemsize))
    angles = 4 * dim  # cosine and sine, float32
    return itemsize * (attention + hidden + feed_forward) + angles


def _routed(spec: ModelSpec, itemsize: int) -> int:
    """Return the numbers that a position has in a layer with experts at its widest, where positions are sorted by expert."""
    assert spec.experts is not None
    chosen, inside = spec.experts.chosen, spec.experts.intermediate
    gating = chosen * (
        spec.hidden + 4 * inside
    )  # rows for the experts; gate and up, the gate's activation, the product
    joining = chosen * (2 * spec.hidden + spec.hidden * 4 // itemsize)  # what they made, that in order, and weighted
    return spec.hidden + max(gating, joining)
