"""How stale the caches were that a refresh makes fresh, added up layer by layer."""

from __future__ import annotations

import torch
from torch import Tensor

from esdllm.runtime.parts import Alive, ForwardPass
from esdllm.runtime.variation import relative_variation

__all__ = ["measure"]


def measure(over: ForwardPass, layer: int, alive: Alive, values: Tensor) -> None:
    """Add to the canvas' drift (B, 2) how far values (R, N, G, D) are from what the cache holds of the positions alive.

    Nothing is done by plans that do not measure. A row's own mean: over its positions in both branches, and over the layers; of
    the block, and of what is left of it; below 0 where it has computed none.
    """
    canvas = over.canvas
    first = over.plan.from_layer
    if not over.plan.measured or canvas.drift is None or layer < first:
        return
    if layer == first:
        canvas.drift.zero_()
    change = relative_variation(values.flatten(2), over.recall(layer, "value", alive.positions))
    positions, block = alive.positions, canvas.rows(over.inputs.block)
    groups = torch.stack([(positions >= block[:, :1]) & (positions <= block[:, -1:]), positions < block[:, :1]], 1)
    if canvas.bias is not None:  # padding counts for nothing
        groups = groups & (canvas.bias.gather(1, positions) == 0).unsqueeze(1)
    counted = groups.float()  # (R, 2, N)
    total, number = (
        x.sum(-1).unflatten(0, (canvas.branches, -1)).sum(0) for x in (change.unsqueeze(1) * counted, counted)
    )
    mean = total / number.clamp(min=1) / (over.parts.model.spec.n_layers - first)
    canvas.drift.add_(mean.masked_fill(number == 0, -1.0))
