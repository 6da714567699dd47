"""Early skipping in a layer: score the positions alive, and hand on the most important.

(ES-dLLM, arXiv 2603.10088, section 4.2.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from esdllm.runtime.canvas import Canvas
from esdllm.runtime.parts import Alive, ForwardPass, take
from esdllm.runtime.remembering import remembering
from esdllm.views import ImportanceView, Projection

__all__ = ["own_first", "skip_by_output", "skip_by_projection"]


class _Kept(NamedTuple):
    """What goes on after a layer."""

    indices: Tensor
    """(R, k) int64, into the positions alive"""
    positions: Tensor
    """(R, k) int64"""
    scores: Tensor | None = None
    """(B, L) float32, by column what positions scored; None where none comes back"""


def skip_by_output(over: ForwardPass, layer: int, alive: Alive) -> Alive:
    """Return what goes on after a layer, chosen by its output."""
    if (kept := _survivors(over, layer, alive, alive.hidden)) is not None:
        alive = over.alive(take(alive.hidden, kept.indices), kept.positions)._replace(scores=kept.scores)
    _remember(over, layer, alive, alive.hidden)
    return alive


def skip_by_projection(over: ForwardPass, layer: int, alive: Alive, made: Projection) -> tuple[Alive, Projection]:
    """Return what goes on within a layer, chosen by its queries, keys or values."""
    site = over.parts.scorer.site
    scored = {"query": made.queries, "key": made.keys, "value": made.values}[site].flatten(2)
    if (kept := _survivors(over, layer, alive, scored)) is not None:
        alive = over.alive(take(alive.hidden, kept.indices), kept.positions)._replace(scores=kept.scores)
        made, scored = Projection(*(take(x, kept.indices) for x in made)), take(scored, kept.indices)
    if site == "query":  # keys and values are cached anyway
        _remember(over, layer, alive, scored)
    return alive, made


def _remember(over: ForwardPass, layer: int, alive: Alive, scored: Tensor) -> None:
    if layer in over.plan.scored and over.parts.scorer.keeps_history:
        over.parts.cache.remember(layer, alive.positions, scored)


def _survivors(over: ForwardPass, layer: int, alive: Alive, x: Tensor) -> _Kept | None:
    """Return which of the positions alive go on; None if all do. The leftmost mask always does."""
    scorer, canvas, inputs = over.parts.scorer, over.canvas, over.inputs
    keep, positions = over.plan.keep[layer], alive.positions
    if keep >= positions.shape[1] and (inputs.keeps is None or layer not in over.plan.scored):
        return None  # a layer at which positions come back is none of those that are scored
    last = over.recall(layer, scorer.site, positions) if scorer.keeps_history else x
    places = positions[: inputs.block.shape[0]]
    undecided = canvas.masked(places, inputs.block)
    confidence = canvas.rows(canvas.confidence).gather(1, positions)
    committed = canvas.rows(canvas.changed()).gather(1, positions)
    seeds, step = canvas.rows(canvas.seeds), canvas.rows(inputs.step)
    marked = canvas.rows(undecided)
    padding = None
    if over.plan.padded and canvas.bias is not None:  # what stands in padding changes no score
        padding = canvas.bias.gather(1, positions) < 0
        x = torch.where(padding.unsqueeze(-1), last, x)
    entropy, margin = (
        None if held is None else canvas.rows(held).gather(1, positions) for held in (canvas.entropy, canvas.margin)
    )
    view = ImportanceView(
        layer, x, last, confidence, marked, committed, alive.logical, seeds, step, entropy=entropy, margin=margin
    )
    score = scorer.score(remembering(scorer, canvas, view, positions))
    if canvas.branches > 1:  # both branches keep the same positions, or their logits could not be combined
        score = score.unflatten(0, (canvas.branches, -1)).mean(0)
    number = torch.finfo(score.dtype)  # any scores are put in an order, with room above it
    score = score.nan_to_num(number.min, number.max, number.min)
    from_end = canvas.columns.shape[0] - places  # of which the largest: see `Canvas.first`
    leftmost = from_end == from_end.masked_fill(~undecided, 0).amax(1, keepdim=True)  # it is never 0 of a place
    score = score.masked_fill(leftmost, float("inf"))
    scores = _noted(over, alive, places, score)
    if inputs.own is not None:
        chosen = _each_its_own(score, keep, [(row[layer], row[layer + 1]) for row in inputs.own])
        return _kept(canvas, positions, chosen, scores)
    if padding is None:
        return _kept(canvas, positions, score.topk(keep, dim=1, sorted=False).indices, scores)
    hidden = padding[: len(places)]
    score = score.masked_fill(hidden, float("-inf"))
    if inputs.keeps is None:
        return _kept(canvas, positions, score.topk(keep, dim=1, sorted=False).indices, scores)
    chosen, spare = own_first(score, keep, inputs.keeps[:, layer : layer + 1], hidden)
    kept = _kept(canvas, positions, chosen, scores)
    return kept._replace(positions=kept.positions.masked_fill(canvas.rows(spare), 0))


def _kept(canvas: Canvas, positions: Tensor, chosen: Tensor, scores: Tensor | None) -> _Kept:
    indices = canvas.rows(chosen)
    return _Kept(indices, positions.gather(1, indices), scores)


def _noted(over: ForwardPass, alive: Alive, places: Tensor, score: Tensor) -> Tensor | None:
    """Return scores (B, L) by column with those of places (B, N), by which dropped positions come back; None if none does."""
    if not over.plan.returning:
        return None
    held = torch.zeros_like(over.canvas.confidence) if alive.scores is None else alive.scores
    return held.scatter(1, places, score)


def _each_its_own(score: Tensor, keep: int, rows: Sequence[tuple[int, int]]) -> Tensor:
    """Return (B, keep), of each row the best k of its first n positions, as `rows` has (n, k), and then those that follow.

    As if the row were alone, of equal scores too: which of them goes on is up to `topk`, and to what it is given.
    """
    chosen = torch.arange(keep, device=score.device).repeat(len(rows), 1)
    for given, own in set(rows):
        alike = [row for row, size in enumerate(rows) if size == (given, own)]
        chosen[alike, :own] = score[alike, :given].topk(own, dim=1, sorted=False).indices
        chosen[alike, own:] += given - own
    return chosen


def own_first(score: Tensor, keep: int, own: Tensor, padding: Tensor) -> tuple[Tensor, Tensor]:
    """Return (B, keep), of each row the best `own` (B, 1) and then its padding (B, N); and (B, keep) bool, which are neither.

    These would not go on if the row were alone. They stand for the first column, which is every row's padding where there are
    any, so that nothing reads what becomes of them.
    """
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    over = (rank >= own) & ~padding
    order = rank + (padding + 2 * over) * score.shape[1]
    chosen = order.topk(keep, dim=1, largest=False, sorted=False).indices
    as_alone = score.topk(keep, dim=1, sorted=False).indices  # of equal scores too, where nothing stands between
    whole = ~padding.any(1, keepdim=True) & (own == keep)
    return torch.where(whole, as_alone, chosen), over.gather(1, chosen) & ~whole
