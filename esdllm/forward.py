"""The layer loop with early skipping: the positions of a window go in, those whose logits are wanted come out.

    window -> layer 0 .. l: all positions of the window
           -> skip layer l: score, keep the most important, the others' keys and values stay as they are in the cache
           -> layer l + 1 ..: the survivors alone, attending to everything in the cache

(ES-dLLM, arXiv 2603.10088, section 4.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import attrs
from torch import Tensor

from esdllm.canvas import Canvas
from esdllm.interfaces import AttentionBackend, Cache, ImportanceScorer, ModelAdapter, TokenSampler, UnmaskingPolicy
from esdllm.plan import StepPlan
from esdllm.views import CacheWrite, ImportanceView

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
    """(M,) int64, the block's positions as indices into the window"""
    counts: Tensor
    """(B,) int64"""
    step: Tensor
    """() int64"""


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


def forward(parts: Parts, plan: StepPlan, canvas: Canvas, inputs: StepInputs) -> tuple[Tensor, Tensor]:
    """Return hidden states (R, n, C) and positions (R, n), ascending: the survivors of a skip step, else the block."""
    window = inputs.window
    if plan.clamped:  # the window's head repeats its first position: equal inputs, equal results
        window = window.clamp(min=canvas.leftmost_committed().minimum(inputs.block[0, 0]))
    positions = canvas.rows(window)
    hidden = parts.model.embed(canvas.inputs().gather(1, positions))
    alive = _standing(parts, canvas, hidden, positions)
    for layer in range(len(plan.keep)):
        alive = _layer(parts, plan, canvas, inputs, layer, alive)
    if plan.skips:
        positions, order = alive.positions.sort(dim=1)
        return _take(alive.hidden, order), positions
    if alive.hidden.shape[1] > plan.block:
        return alive.hidden[:, inputs.readers], alive.positions[:, inputs.readers]
    return alive.hidden, alive.positions


def _standing(parts: Parts, canvas: Canvas, hidden: Tensor, positions: Tensor) -> _Alive:
    logical = canvas.rows(canvas.logical).gather(1, positions)
    return _Alive(hidden, positions, logical, parts.model.encode(logical))


def _layer(parts: Parts, plan: StepPlan, canvas: Canvas, inputs: StepInputs, layer: int, alive: _Alive) -> _Alive:
    site = parts.scorer.site
    readers = inputs.readers if plan.narrow and layer == len(plan.keep) - 1 else None
    queries, keys, values = parts.model.project(layer, alive.hidden, alive.places, readers)
    if site != "hidden":
        scored = {"query": queries, "key": keys, "value": values}[site].flatten(2)
        if (chosen := _survivors(parts, plan, canvas, inputs, layer, scored, alive)) is not None:
            queries, keys, values = (_take(x, chosen) for x in (queries, keys, values))
            scored, alive = _take(scored, chosen), _keep(parts, canvas, alive, chosen)
        if site == "query":
            _remember(parts, plan, layer, alive.positions, scored)
    block = canvas.rows(inputs.block)
    stored = parts.cache.update(
        CacheWrite(layer, alive.positions, queries, keys, values, canvas.bias, block, plan.phase, canvas.padding)
    )
    attended = parts.attention.attend(queries, stored)
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
    block = canvas.rows(inputs.block)
    in_block = (positions >= block[:, :1]) & (positions <= block[:, -1:])
    undecided = canvas.rows(canvas.undecided).gather(1, positions) & in_block
    confidence = canvas.rows(canvas.confidence).gather(1, positions)
    committed = canvas.rows(canvas.committed).gather(1, positions)
    seeds = canvas.rows(canvas.seeds)
    score = parts.scorer.score(
        ImportanceView(layer, x, last, confidence, undecided, committed, alive.logical, seeds, inputs.step)
    )
    leftmost = positions.masked_fill(~undecided, canvas.columns.shape[0]).amin(1, keepdim=True)
    score = score.masked_fill(positions == leftmost, float("inf"))
    if canvas.branches > 1:  # both branches keep the same positions, or their logits could not be combined
        score = score.unflatten(0, (canvas.branches, -1)).mean(0)
    return canvas.rows(score.topk(keep, dim=1, sorted=False).indices)


def _keep(parts: Parts, canvas: Canvas, alive: _Alive, chosen: Tensor) -> _Alive:
    return _standing(parts, canvas, _take(alive.hidden, chosen), alive.positions.gather(1, chosen))


def _take(x: Tensor, chosen: Tensor) -> Tensor:
    """Return x (R, N, ...) at chosen (R, k): (R, k, ...)."""
    index = chosen.reshape(*chosen.shape, *[1] * (x.dim() - 2)).expand(*chosen.shape, *x.shape[2:])
    return x.gather(1, index)


def _remember(parts: Parts, plan: StepPlan, layer: int, positions: Tensor, x: Tensor) -> None:
    if layer in plan.scored and parts.scorer.keeps_history:
        parts.cache.remember(layer, positions, x)
