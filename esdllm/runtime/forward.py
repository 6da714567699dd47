"""The layer loop with early skipping: the positions of a window go in, those whose logits are wanted come out.

    window -> layer 0 .. l: all positions of the window
           -> skip layer l: score, keep the most important, the others' keys and values stay as they are in the cache
           -> layer l + 1 ..: the survivors alone, attending to everything in the cache

(ES-dLLM, arXiv 2603.10088, section 4.)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from esdllm.runtime.coming import come_in
from esdllm.runtime.drift import measure
from esdllm.runtime.parts import Alive, ForwardPass, take
from esdllm.runtime.skipping import skip_by_output, skip_by_projection

__all__ = ["Decidable", "forward"]


class Decidable(NamedTuple):
    """What a pass leaves: the survivors of a skip step, or the block; of those the masked ones, and others up to the plan's n."""

    hidden: Tensor
    """(R, n, C)"""
    positions: Tensor
    """(B, n) int64, ascending"""
    largest: Tensor
    """(R,) float32, of each row the largest magnitude of all layers' queries and keys, and of `hidden`; NaN if one is.

    Where a kernel of attention meets what is no number, it may give one all the same.
    """


def forward(over: ForwardPass) -> Decidable:
    """Return the hidden states from which a step decides."""
    alive = over.enter()
    extremes: list[Tensor] = []
    for layer in range(len(over.plan.keep)):
        alive = come_in(over, layer, _layer(over, layer, alive, extremes))
    hidden, positions = _decidable(over, alive)
    largest = torch.stack([*extremes, *_extremes(hidden)]).float().abs().amax(0)
    return Decidable(hidden, positions, largest.expand(hidden.shape[0]))


def _layer(over: ForwardPass, layer: int, alive: Alive, extremes: list[Tensor]) -> Alive:
    """Return what goes on after a layer; adds those of its queries and keys to `extremes`."""
    parts, plan, readers = over.parts, over.plan, over.readers(layer)
    made = parts.model.project(layer, alive.hidden, alive.places, readers)
    # not in a skip step on a GPU: its kernels would be 3 % of it, and attention there hides no NaN
    if not (plan.skips and made.keys.is_cuda):
        extremes += [*_extremes(made.queries), *_extremes(made.keys)]
    if parts.scorer.site != "hidden":
        alive, made = skip_by_projection(over, layer, alive, made)
    measure(over, layer, alive, made.values)
    attended = parts.attention.attend(made.queries, over.cached(layer, alive, made))
    if readers is not None:
        alive = alive.at(readers)
    alive = alive._replace(hidden=parts.model.mix(layer, alive.hidden, attended))
    return skip_by_output(over, layer, alive) if parts.scorer.site == "hidden" else alive


def _extremes(x: Tensor) -> tuple[Tensor, ...]:
    """Return what is as large as x (R, ...) is, (R,) or () each, NaN if x is: of one row in one kernel, in any strides."""
    return x.aminmax() if x.shape[0] == 1 else (x.abs().amax(tuple(range(1, x.dim()))),)


def _decidable(over: ForwardPass, alive: Alive) -> tuple[Tensor, Tensor]:
    plan, canvas, inputs = over.plan, over.canvas, over.inputs
    hidden, positions = alive.hidden, alive.positions[: inputs.block.shape[0]]
    if plan.leads:  # what the last row decides stands behind the window, or is its own position: the shift's affair
        return hidden[:, -1:], inputs.block
    if plan.skips:
        positions, order = positions.sort(dim=1)
        hidden = take(hidden, canvas.rows(order))
    elif inputs.readers.dim() == 2:
        hidden, positions = take(hidden, canvas.rows(inputs.readers)), positions.gather(1, inputs.readers)
    elif not plan.open and hidden.shape[1] > plan.block:
        hidden, positions = hidden[:, inputs.readers], positions[:, inputs.readers]
    if plan.decided == positions.shape[1]:
        return hidden, positions
    rank = positions + canvas.columns.shape[0] * ~canvas.masked(positions, inputs.block)
    chosen = rank.topk(plan.decided, dim=1, largest=False).indices.sort(dim=1).values
    return take(hidden, canvas.rows(chosen)), positions.gather(1, chosen)
