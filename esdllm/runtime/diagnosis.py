"""Finding where numbers stopped being numbers. Runs only after a generation turned out to hold NaN."""

from __future__ import annotations

import torch
from torch import Tensor

from esdllm.errors import NumericsError
from esdllm.interfaces import ModelAdapter
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.plain import layers
from esdllm.views import ModelSpec

__all__ = ["overflow_bound", "raise_if_poisoned"]


def overflow_bound(spec: ModelSpec) -> float:
    """Return what queries and keys stay below: products of two that do cannot overflow float32."""
    return float(torch.finfo(torch.float32).max ** 0.5 / spec.head_dim)


def raise_if_poisoned(model: ModelAdapter, canvas: Canvas, suspects: str) -> None:
    """Raise if any step of the run had numbers that are none; `suspects` are what may have made them beside the model.

    Raises:
        NumericsError: names the first such step and its row, and the first layer whose output is not finite when the row is
            computed again in full.
    """
    steps = canvas.poisoned.tolist()
    bad = [row for row, step in enumerate(steps) if step >= 0]
    if not bad:
        return
    row = min(bad, key=steps.__getitem__)
    named = f" of row {row}" if len(steps) > 1 else ""
    tokens, logical = (x[row :: len(steps)] for x in (canvas.inputs(), canvas.rows(canvas.logical)))  # in each branch
    places = (_first_bad_place(model, *both) for both in zip(tokens.split(1), logical.split(1), strict=True))
    nowhere = f"a full pass over the finished canvas is finite, so they came out of {suspects}"
    where = next((place for place in places if place), nowhere)
    raise NumericsError(
        f"NaN logits at step {steps[row]}{named}; {where}. Look at the weights, or use a wider dtype than {str(model.dtype)[6:]}"
    )


def _first_bad_place(model: ModelAdapter, tokens: Tensor, logical: Tensor) -> str | None:
    hidden, bound = model.embed(tokens), overflow_bound(model.spec)
    if not hidden.isfinite().all():
        return "the embedding is the first that is not finite"
    for number, (output, made) in enumerate(layers(model, hidden, logical)):
        if not output.isfinite().all():
            return f"the output of layer {number} is the first that is not finite"
        largest = max(float(x.abs().max()) for x in (made.queries, made.keys))
        if not largest < bound:
            return f"queries or keys of layer {number} are as large as {largest:.3g}, and their products overflow"
        hidden = output
    if not model.logits(hidden).isfinite().all():
        return "all layers are finite, the head's output is not"
    return None
