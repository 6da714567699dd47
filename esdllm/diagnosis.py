"""Finding where numbers stopped being numbers. Runs only after a generation turned out to hold NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from esdllm.canvas import Canvas
from esdllm.errors import NumericsError
from esdllm.interfaces import ModelAdapter

__all__ = ["raise_if_poisoned"]


def raise_if_poisoned(model: ModelAdapter, canvas: Canvas) -> None:
    """Raise if any step of the run had NaN confidences.

    Raises:
        NumericsError: names the first such step, and the first layer whose output is not finite when the canvas is
            computed again in full.
    """
    step = int(canvas.poisoned)
    if step < 0:
        return
    layer = _first_bad_layer(model, canvas.tokens, canvas.logical)
    where = (
        f"the output of layer {layer} is the first that is not finite"
        if layer is not None
        else ("a full pass over the finished canvas is finite, so it came out of a cache or an attention backend")
    )
    raise NumericsError(
        f"NaN logits at step {step}; {where}. Look at the weights, or use a wider dtype than {str(model.dtype)[6:]}"
    )


def _first_bad_layer(model: ModelAdapter, tokens: Tensor, logical: Tensor) -> int | str | None:
    hidden, places = model.embed(tokens), model.encode(logical)
    if not hidden.isfinite().all():
        return "0's input (the embedding)"
    for layer in range(model.spec.n_layers):
        queries, keys, values = model.project(layer, hidden, places)
        repeat = queries.shape[2] // keys.shape[2]
        keys, values = (x.repeat_interleave(repeat, dim=2) for x in (keys, values))
        weights = torch.einsum("bnhd,bkhd->bhnk", queries, keys) * queries.shape[-1] ** -0.5
        hidden = model.mix(layer, hidden, torch.einsum("bhnk,bkhd->bnhd", weights.softmax(-1), values))
        if not hidden.isfinite().all():
            return layer
    return None if model.logits(hidden).isfinite().all() else f"{model.spec.n_layers} (the head)"
