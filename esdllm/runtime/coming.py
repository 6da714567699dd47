"""How positions come into a layer that were not in the one before: with the hidden state that is remembered of them.

A skip schedule lets dropped positions back in at some layers (`StepPlan.returning`); a refresh may begin at a layer, below which
only the block is computed (`StepPlan.from_layer`). What is remembered is a layer's output when a position last went on there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from esdllm.planning.coming import remembered_outputs
from esdllm.runtime.parts import Alive, ForwardPass, take
from esdllm.runtime.skipping import own_first

__all__ = ["come_in"]


def come_in(over: ForwardPass, layer: int, alive: Alive) -> Alive:
    """Return what goes into the layer that follows `layer`, whose output is remembered where the plan asks for that."""
    plan, site = over.plan, over.parts.scorer.site
    if layer in remembered_outputs(plan.returning, plan.joining, site == "hidden"):
        over.parts.cache.remember(layer, alive.positions, alive.hidden)
    if plan.from_layer == layer + 1:
        return _joined(over, layer, alive)
    at = layer if site == "hidden" else layer + 1
    return _returned(over, layer, at, alive) if plan.skips and at in plan.returning else alive


def _joined(over: ForwardPass, layer: int, alive: Alive) -> Alive:
    """Return the whole window, the block as it was computed and the others as they are remembered."""
    positions, readers = over.canvas.rows(over.window()), over.inputs.readers
    hidden = over.recall(layer, "hidden", positions)
    if readers.dim() == 1:
        hidden = hidden.index_copy(1, readers, alive.hidden)
    else:
        index = over.canvas.rows(readers).unsqueeze(-1).expand_as(alive.hidden)
        hidden = hidden.scatter(1, index, alive.hidden)
    return over.alive(hidden, positions)


def _returned(over: ForwardPass, layer: int, at: int, alive: Alive) -> Alive:
    """Return the positions alive and those that come back at layer `at`: the best of the others, by their last score."""
    canvas, inputs, keep = over.canvas, over.inputs, over.plan.keep[at]
    if alive.scores is None or (keep <= alive.positions.shape[1] and inputs.keeps is None):
        return alive
    places, window = alive.positions[: inputs.block.shape[0]], over.window()
    number = torch.arange(1, places.shape[1] + 1, device=places.device).expand_as(places)
    here = torch.zeros_like(canvas.logical).scatter(
        1, places, number
    )  # where a column stands among those alive, from 1
    score = alive.scores.gather(1, window).masked_fill(here.gather(1, window) > 0, float("inf"))
    chosen = _best(over, at, keep, score, window)
    hidden = over.recall(layer, "hidden", canvas.rows(chosen))
    among = canvas.rows(here.gather(1, chosen))
    hidden = torch.where((among > 0).unsqueeze(-1), take(alive.hidden, (among - 1).clamp(min=0)), hidden)
    return over.alive(hidden, canvas.rows(chosen))._replace(scores=alive.scores)


def _best(over: ForwardPass, at: int, keep: int, score: Tensor, window: Tensor) -> Tensor:
    """Return (B, keep) int64, the positions of a window (B, N) with the highest scores (B, N), each row's as if alone."""
    canvas, inputs = over.canvas, over.inputs
    if not over.plan.padded or canvas.bias is None:
        return window.gather(1, score.topk(keep, dim=1, sorted=False).indices)
    hidden = canvas.bias[: len(window)].gather(1, window) < 0
    score = score.masked_fill(hidden, float("-inf"))
    if inputs.keeps is None:
        return window.gather(1, score.topk(keep, dim=1, sorted=False).indices)
    chosen, spare = own_first(score, keep, inputs.keeps[:, at : at + 1], hidden)
    return window.gather(1, chosen).masked_fill(spare, 0)
