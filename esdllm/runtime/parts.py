"""What a step is made over: the components, the plan, the canvas, the tensors that move, and the positions still computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor

from esdllm.interfaces import (
    AttentionBackend,
    Cache,
    EndingBlocks,
    ImportanceScorer,
    ModelAdapter,
    OffsetCache,
    TokenSampler,
    UnmaskingPolicy,
)
from esdllm.plan import StepPlan
from esdllm.runtime.canvas import Canvas
from esdllm.views import CacheWrite, KeyValue, Projection, Site

__all__ = ["Alive", "ForwardPass", "Parts", "StepInputs", "take"]


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
    offset: OffsetCache | None = None
    """the cache, if it goes by where rows begin"""
    blocks: EndingBlocks | None = None
    """what tells where each row's block ends; None if it ends where it is planned to"""
    block_length: int = 0
    """as it is set, for `blocks` to read"""


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
    step_in_block: Tensor
    """(B,) int64, those that its block has behind it"""
    block_number: Tensor
    """(B,) int64, its block's number"""
    block_length: Tensor
    """(B,) int64, the positions of its block, those that fill it up left out"""
    bias: Tensor | None = None
    """(R, L), 0 at what attention may read and -inf elsewhere; None if it may read everything"""
    keeps: Tensor | None = None
    """(B, layers) int64, how many of its own positions each row keeps; None if all keep the plan's"""
    padding: Tensor | None = None
    """(R,) int64, how many of each row's first columns are hidden, where those are all that `bias` hides"""
    borders: Tensor | None = None
    """(B, 2) int64, where the window spans several blocks of a block-causal model: the columns of a first one that all see
    each other (0 if it is as the others), and the first column of the last"""
    own: Sequence[tuple[int, ...]] | None = None
    """for every row, how many of its first positions enter and leave each layer by themselves, where hidden columns follow;
    None if the numbers are the plan's, or those of `keeps`, which a compiled or recorded step reads"""


class Alive(NamedTuple):
    """The positions that a layer computes."""

    hidden: Tensor
    """(R, N, C)"""
    positions: Tensor
    """(R, N) int64"""
    logical: Tensor
    """(R, N) int64, the same counted from each row's first token"""
    places: Any
    """what the model made of those"""
    scores: Tensor | None = None
    """(B, L) float32, by column what a position last scored in this step; None where none comes back"""

    def at(self, readers: Tensor) -> Alive:
        """Return those of the indices `readers` (M,); places stay, for no layer projects these again."""
        return self._replace(hidden=self.hidden[:, readers], positions=self.positions[:, readers])


class ForwardPass(NamedTuple):
    """What a pass through the layers is made over. A tuple, for a compiled step can make one and no attrs object."""

    parts: Parts
    plan: StepPlan
    canvas: Canvas
    inputs: StepInputs

    def enter(self) -> Alive:
        """Return the positions of the window, embedded; of the block alone where the window comes in at a later layer."""
        canvas = self.canvas
        positions = canvas.rows(self.inputs.block if self.plan.from_layer else self.window())
        return self.alive(self.parts.model.embed(canvas.inputs().gather(1, positions)), positions)

    def window(self) -> Tensor:
        """Return (B, N) int64, the positions of the window."""
        canvas, plan = self.canvas, self.plan
        if plan.open:
            return canvas.open(plan.window)
        if plan.clamped:  # the window's head repeats its first position: equal inputs, equal results
            return self.inputs.window.clamp(min=canvas.leftmost_committed().minimum(self.inputs.block[:, :1]))
        return self.inputs.window

    def alive(self, hidden: Tensor, positions: Tensor) -> Alive:
        """Return hidden states (R, N, C) at positions (R, N), with what the model makes of where those stand."""
        logical = self.canvas.rows(self.canvas.logical).gather(1, positions)
        return Alive(hidden, positions, logical, self.parts.model.encode(logical))

    def readers(self, layer: int) -> Tensor | None:
        """Return the indices (M,) of the positions that a layer computes queries for; None for all.

        The last layer's others are read by nobody, where no later step compares with them.
        """
        return self.inputs.readers if self.plan.narrow and layer == len(self.plan.keep) - 1 else None

    def cached(self, layer: int, alive: Alive, made: Projection) -> KeyValue:
        """Write a layer's keys and values, and return what attention reads: the cache's, as far as the plan sees."""
        inputs = self.inputs
        block = self.canvas.rows(inputs.block)
        offsets = self.canvas.rows(self.canvas.offsets)
        write = CacheWrite(layer, alive.positions, *made, inputs.bias, block, self.plan.phase, inputs.padding, offsets)
        read = self.parts.cache.update(write).first(self.plan.visible)
        if (
            self.plan.written is None or made.queries.shape[1] < alive.positions.shape[1]
        ):  # those of the last block alone
            return read
        columns = self.canvas.columns[: read.keys.shape[1]].expand(read.keys.shape[0], -1)
        asking = self._blocks(alive.positions)
        if self.canvas.bias is not None:  # padding asks too: it reads whatever is read, lest it be left without any key
            hidden = self.canvas.bias.gather(1, alive.positions) < 0
            asking = torch.where(hidden, self.canvas.columns.shape[0], asking)
        return read._replace(query_blocks=asking, key_blocks=self._blocks(columns))

    def recall(self, layer: int, site: Site, positions: Tensor) -> Tensor:
        """Return (R, N, F), what the cache holds of positions (R, N) at a site of a layer."""
        parts, canvas = self.parts, self.canvas
        if parts.offset is None:
            return parts.cache.recall(layer, site, positions)
        return parts.offset.recall_at(layer, site, positions, canvas.rows(canvas.offsets))

    def _blocks(self, columns: Tensor) -> Tensor:
        """Return the numbers of the blocks (R, N) int64 in which columns are computed: the first column of each."""
        assert self.plan.written is not None
        assert self.inputs.borders is not None
        size, borders = self.plan.written, self.canvas.rows(self.inputs.borders)
        first, last = borders[:, :1], borders[:, 1:]
        return torch.where(columns < last, columns // size * size * (columns >= first), last)


def take(x: Tensor, chosen: Tensor) -> Tensor:
    """Return x (R, N, ...) at chosen (R, k): (R, k, ...)."""
    index = chosen.reshape(*chosen.shape, *[1] * (x.dim() - 2)).expand(*chosen.shape, *x.shape[2:])
    return x.gather(1, index)
