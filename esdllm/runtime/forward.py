"""The layer loop with early skipping: the positions of a window go in, those whose logits are wanted come out.

    window -> layer 0 .. l: all positions of the window
           -> skip layer l: score, keep the most important, the others' keys and values stay as they are in the cache
           -> layer l + 1 ..: the survivors alone, attending to everything in the cache

(ES-dLLM, arXiv 2603.10088, section 4.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor

from esdllm.interfaces import AttentionBackend, Cache, ImportanceScorer, ModelAdapter, TokenSampler, UnmaskingPolicy
from esdllm.plan import StepPlan
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.variation import relative_variation
from esdllm.views import CacheWrite, ImportanceView, KeyValue

__all__ = ["Parts", "StepInputs", "forward"]


@attrs.frozen(eq=False)
class Parts:
    """The components that a step calls."""

    model: ModelAdapter
    cache: Cache
    attention: AttentionBackend
    scorer: ImportanceScorer
    sampler: TokenSampler
    unmasking: UnmaskingPolicy
    cfg_scale: float
    delay_eos: bool


class StepInputs(NamedTuple):
    """The moving half of a step, as tensors, so that moving it recompiles nothing."""

    window: Tensor
    """(B, N) int64"""
    block: Tensor
    """(B, M) int64"""
    readers: Tensor
    """(M,) int64, the block's positions as indices into the window; (B, M) where every row has its own"""
    counts: Tensor
    """(B,) int64"""
    step: Tensor
    """(B,) int64, the steps that each row has behind it"""
    bias: Tensor | None = None
    """(R, L), 0 at what attention may read and -inf elsewhere; None if it may read everything"""
    keeps: Tensor | None = None
    """(B, layers) int64, how many of its own positions each row keeps; None if all keep the plan's"""
    padding: Tensor | None = None
    """(R,) int64, how many of each row's first columns are hidden, where those are all that `bias` hides"""


class _Alive(NamedTuple):
    """The positions that a layer computes."""

    hidden: Tensor
    """(R, N, C)"""
    positions: Tensor
    """(R, N)"""
    logical: Tensor
    """(R, N), the same counted from each row's first token"""
    places: Any
    """what the model made of those"""
    extremes: tuple[Tensor, ...] = ()
    """the least and the largest of all queries and keys so far, () each"""


def forward(parts: Parts, plan: StepPlan, canvas: Canvas, inputs: StepInputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return hidden states (R, n, C), positions (B, n), ascending, of what may be decided, and the step's extremes (E,).

    Those are the survivors of a skip step, or the block; of those the masked ones, filled up with others to the plan's n.
    The extremes are of the queries and keys of all layers and of the hidden states: where a kernel of attention meets what
    is no number, it may give one all the same.
    """
    window = canvas.open(plan.window) if plan.open else inputs.window
    if plan.clamped:  # the window's head repeats its first position: equal inputs, equal results
        window = window.clamp(min=canvas.leftmost_committed().minimum(inputs.block[0, 0]))
    positions = canvas.rows(window)
    hidden = parts.model.embed(canvas.inputs().gather(1, positions))
    alive = _standing(parts, canvas, hidden, positions)
    if plan.measured and canvas.drift is not None:
        canvas.drift.zero_()
    for layer in range(len(plan.keep)):
        alive = _layer(parts, plan, canvas, inputs, layer, alive)
    hidden, positions = _decidable(plan, canvas, inputs, alive.hidden, alive.positions[: inputs.block.shape[0]])
    return hidden, positions, torch.stack((*alive.extremes, *hidden.aminmax()))


def _decidable(
    plan: StepPlan, canvas: Canvas, inputs: StepInputs, hidden: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    if plan.skips:
        positions, order = positions.sort(dim=1)
        hidden = _take(hidden, canvas.rows(order))
    elif inputs.readers.dim() == 2:
        hidden, positions = _take(hidden, canvas.rows(inputs.readers)), positions.gather(1, inputs.readers)
    elif not plan.open and hidden.shape[1] > plan.block:
        hidden, positions = hidden[:, inputs.readers], positions[:, inputs.readers]
    if plan.decided == positions.shape[1]:
        return hidden, positions
    rank = positions + canvas.columns.shape[0] * ~canvas.masked(positions, inputs.block)
    chosen = rank.topk(plan.decided, dim=1, largest=False).indices.sort(dim=1).values
    return _take(hidden, canvas.rows(chosen)), positions.gather(1, chosen)


def _standing(parts: Parts, canvas: Canvas, hidden: Tensor, positions: Tensor) -> _Alive:
    logical = canvas.rows(canvas.logical).gather(1, positions)
    return _Alive(hidden, positions, logical, parts.model.encode(logical))


def _layer(parts: Parts, plan: StepPlan, canvas: Canvas, inputs: StepInputs, layer: int, alive: _Alive) -> _Alive:
    site = parts.scorer.site
    readers = inputs.readers if plan.narrow and layer == len(plan.keep) - 1 else None
    queries, keys, values = parts.model.project(layer, alive.hidden, alive.places, readers)
    # not in a skip step on a GPU: two kernels a layer would be 3 % of it, and attention there hides no NaN
    if not (plan.skips and keys.is_cuda):
        alive = alive._replace(extremes=(*alive.extremes, *queries.aminmax(), *keys.aminmax()))
    if site != "hidden":
        scored = {"query": queries, "key": keys, "value": values}[site].flatten(2)
        if (chosen := _survivors(parts, plan, canvas, inputs, layer, scored, alive)) is not None:
            queries, keys, values = (_take(x, chosen) for x in (queries, keys, values))
            scored, alive = _take(scored, chosen), _keep(parts, canvas, alive, chosen)
        if site == "query":
            _remember(parts, plan, layer, alive.positions, scored)
    if plan.measured:
        _measure(parts, canvas, inputs, layer, alive, values)
    block = canvas.rows(inputs.block)
    stored = parts.cache.update(
        CacheWrite(layer, alive.positions, queries, keys, values, inputs.bias, block, plan.phase, inputs.padding)
    )
    attended = parts.attention.attend(queries, _visible(stored, plan.visible))
    if readers is not None:
        alive = alive._replace(hidden=alive.hidden[:, readers], positions=alive.positions[:, readers])
    alive = alive._replace(hidden=parts.model.mix(layer, alive.hidden, attended))
    if site == "hidden":
        if (chosen := _survivors(parts, plan, canvas, inputs, layer, alive.hidden, alive)) is not None:
            alive = _keep(parts, canvas, alive, chosen)
        _remember(parts, plan, layer, alive.positions, alive.hidden)
    return alive


def _survivors(
    parts: Parts, plan: StepPlan, canvas: Canvas, inputs: StepInputs, layer: int, x: Tensor, alive: _Alive
) -> Tensor | None:
    """Return (R, k), which of the positions alive go on; None if all do. The leftmost mask always does."""
    keep, positions = plan.keep[layer], alive.positions
    if keep >= positions.shape[1]:
        return None
    last = parts.cache.recall(layer, parts.scorer.site, positions) if parts.scorer.keeps_history else x
    places = positions[: inputs.block.shape[0]]
    undecided = canvas.masked(places, inputs.block)
    confidence = canvas.rows(canvas.confidence).gather(1, positions)
    committed = canvas.rows(canvas.changed()).gather(1, positions)
    seeds, step = canvas.rows(canvas.seeds), canvas.rows(inputs.step)
    marked = canvas.rows(undecided)
    padding = None
    if plan.padded and canvas.bias is not None:  # what stands in padding changes no score
        padding = canvas.bias.gather(1, positions) < 0
        x = torch.where(padding.unsqueeze(-1), last, x)
    score = parts.scorer.score(
        ImportanceView(layer, x, last, confidence, marked, committed, alive.logical, seeds, step)
    )
    if canvas.branches > 1:  # both branches keep the same positions, or their logits could not be combined
        score = score.unflatten(0, (canvas.branches, -1)).mean(0)
    number = torch.finfo(score.dtype)  # any scores are put in an order, with room above it
    score = score.nan_to_num(number.min, number.max, number.min)
    from_end = canvas.columns.shape[0] - places  # of which the largest: see `Canvas._first`
    leftmost = from_end == from_end.masked_fill(~undecided, 0).amax(1, keepdim=True)  # it is never 0 of a place
    score = score.masked_fill(leftmost, float("inf"))
    if padding is not None:
        score = _padding_last(score, padding[: len(places)], None if inputs.keeps is None else inputs.keeps[:, layer])
    return canvas.rows(score.topk(keep, dim=1, sorted=False).indices)


def _padding_last(score: Tensor, padding: Tensor, keeps: Tensor | None) -> Tensor:
    """Return scores (B, N) whose order puts padding (B, N) last; behind the `keeps` (B,) best of a row, if that is told."""
    score = score.masked_fill(padding, float("-inf"))
    if keeps is None:
        return score
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    over = (rank >= keeps.unsqueeze(1)) & ~padding
    return -(rank + padding * score.shape[1] + over * 2 * score.shape[1]).float()


def _visible(stored: KeyValue, visible: int | None) -> KeyValue:
    """Return the first `visible` of the keys, without a copy; all if None, or if there are no more."""
    if visible is None or stored.keys.shape[1] <= visible:
        return stored
    bias = None if stored.bias is None else stored.bias[:, :visible]
    return KeyValue(stored.keys[:, :visible], stored.values[:, :visible], bias, stored.padding)


def _measure(parts: Parts, canvas: Canvas, inputs: StepInputs, layer: int, alive: _Alive, values: Tensor) -> None:
    """Add to the canvas' drift how far the values of the positions alive are from what the cache holds of them.

    (2,): of the block, and of what is left of it; -1 if nothing is.
    """
    if canvas.drift is None:
        return
    change = relative_variation(values.flatten(2), parts.cache.recall(layer, "value", alive.positions))
    positions, block = alive.positions, canvas.rows(inputs.block)
    read = torch.ones_like(positions, dtype=torch.bool)
    if canvas.bias is not None:
        read = canvas.bias.gather(1, positions) == 0
    groups = torch.stack([(positions >= block[:, :1]) & (positions <= block[:, -1:]), positions < block[:, :1]])
    counted = (groups & read).float()
    means = (change * counted).sum(-1) / counted.sum(-1).clamp(min=1)
    found = means.amax(1) / parts.model.spec.n_layers
    canvas.drift.add_(found.masked_fill(~counted.any(-1).any(-1), -1.0))


def _keep(parts: Parts, canvas: Canvas, alive: _Alive, chosen: Tensor) -> _Alive:
    standing = _standing(parts, canvas, _take(alive.hidden, chosen), alive.positions.gather(1, chosen))
    return standing._replace(extremes=alive.extremes)


def _take(x: Tensor, chosen: Tensor) -> Tensor:
    """Return x (R, N, ...) at chosen (R, k): (R, k, ...)."""
    index = chosen.reshape(*chosen.shape, *[1] * (x.dim() - 2)).expand(*chosen.shape, *x.shape[2:])
    return x.gather(1, index)


def _remember(parts: Parts, plan: StepPlan, layer: int, positions: Tensor, x: Tensor) -> None:
    if layer in plan.scored and parts.scorer.keeps_history:
        parts.cache.remember(layer, positions, x)
