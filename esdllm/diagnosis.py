"""Finding where numbers stopped being numbers. Runs only after a generation turned out to hold NaN."""

from __future__ import annotations

from torch import Tensor

from esdllm.canvas import Canvas
from esdllm.errors import NumericsError
from esdllm.interfaces import ModelAdapter
from esdllm.plain import hidden_states

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
    tokens, logical = canvas.inputs(), canvas.rows(canvas.logical)
    places = (_first_bad_place(model, tokens[row : row + 1], logical[row : row + 1]) for row in range(len(tokens)))
    where = next((place for place in places if place), _NOWHERE)
    raise NumericsError(
        f"NaN logits at step {step}; {where}. Look at the weights, or use a wider dtype than {str(model.dtype)[6:]}"
    )


_NOWHERE = "a full pass over the finished canvas is finite, so they came out of a cache or an attention backend"


def _first_bad_place(model: ModelAdapter, tokens: Tensor, logical: Tensor) -> str | None:
    for number, hidden in enumerate(hidden_states(model, tokens, logical)):
        if not hidden.isfinite().all():
            place = f"the output of layer {number - 1}" if number else "the embedding"
            return f"{place} is the first that is not finite"
    if not model.logits(hidden).isfinite().all():
        return "all layers are finite, the head's output is not"
    return None
