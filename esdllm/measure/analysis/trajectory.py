"""What a run decided, and when: enough to make the canvas of every step again.

A committed token never changes, so the number of the step that committed each column says it all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from esdllm.errors import ConfigError
from esdllm.plan import Block
from esdllm.runtime.engine import Engine
from esdllm.runtime.prompts import Prompts, prepare
from esdllm.views import ModelSpec, StepRecord

__all__ = ["GIVEN", "KINDS", "Trajectory", "TrajectoryRecorder", "decode"]

GIVEN = -1
_NEVER = 2**62

KINDS = ("prompt", "committed", "end of text", "just committed", "masked, in block", "masked, later")
"""Kinds of position between two steps: given; committed before, and no stop; a stop committed before; committed by the
earlier step; still masked, in the block that the later step decodes; still masked, elsewhere."""


@attrs.frozen(eq=False)
class Trajectory:
    """One prompt's run, without padding. Steps in which the prompt's row committed nothing are left out: they change nothing."""

    tokens: NDArray[Any]
    """(L,) int64, the last canvas"""
    committed_at: NDArray[Any]
    """(L,) int64, the step that committed the column; GIVEN in the prompt; more than `states` if none did"""
    stops: NDArray[Any]
    """(L,) bool, columns of `tokens` that hold a stop token"""
    blocks: tuple[Block, ...]
    """for every step, the columns of the block being decoded"""
    mask_id: int

    @property
    def states(self) -> int:
        """Canvases that a forward pass was made on: the first, and one after every step but the last."""
        return len(self.blocks)

    def canvas(self, state: int) -> NDArray[Any]:
        """Return tokens (L,) int64 as they were before step `state`."""
        return np.where(self.committed_at < state, self.tokens, self.mask_id)

    def kinds(self, state: int) -> NDArray[Any]:
        """Return (L,) int64, an index into KINDS, between steps `state` - 1 and `state`."""
        columns, when = np.arange(len(self.tokens)), self.committed_at
        start, stop = self.blocks[state]
        in_block = (columns >= start) & (columns < stop)
        earlier = np.where(self.stops, 2, 1)
        masked = np.where(in_block, 4, 5)
        return np.select([when == GIVEN, when < state - 1, when == state - 1], [0, earlier, 3], masked)

    def distances(self, state: int) -> NDArray[Any]:
        """Return (L,) int64, how far each column is from the nearest that step `state` - 1 committed."""
        just = np.flatnonzero(self.committed_at == state - 1)
        distances: NDArray[Any] = np.abs(np.arange(len(self.tokens))[:, None] - just).min(axis=1)
        return distances

    def finished(self, state: int) -> bool:
        """Return whether the answer is complete before step `state`: decided up to a stop, or to the end."""
        decided = self.committed_at < state
        if decided.all():
            return True
        stops = np.flatnonzero(decided & self.stops & (self.committed_at != GIVEN))
        return bool(len(stops) and stops[0] < np.flatnonzero(~decided)[0])


class TrajectoryRecorder:
    """A step observer that notes which step committed what. Holds two integers per column and one block per step."""

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Take the canvas before the first step."""
        self._spec = spec
        self._tokens = tokens.clone()
        self._committed_at = torch.where(tokens == spec.mask_id, _NEVER, GIVEN)
        self._blocks: list[list[Block]] = [[] for _ in tokens]
        self._padding = (0,) * len(tokens)

    def step(self, record: StepRecord) -> None:
        """Take a step's commits."""
        made = torch.tensor([[len(blocks)] for blocks in self._blocks], device=record.tokens.device)
        self._committed_at = torch.where(record.committed, made, self._committed_at)
        self._tokens.copy_(record.tokens)
        self._padding = record.padding or self._padding
        shift = self._spec.logit_shift
        block = Block(record.block.start + shift, record.block.stop + shift)
        for row in record.committed.any(1).nonzero()[:, 0].tolist():
            self._blocks[row].append(block)

    def end(self) -> None:
        """Nothing is left to do."""

    def trajectories(self, stop_ids: Sequence[int], early_stop: bool) -> list[Trajectory]:
        """Return every row's, less the padding on its left; with `early_stop`, up to its answer's last step.

        In a batch a finished row goes on until the others are finished; ended there, it is what it would be alone.
        """
        tokens, when = self._tokens.cpu().numpy(), self._committed_at.cpu().numpy()
        found = []
        for row, (room, blocks) in enumerate(zip(self._padding, self._blocks, strict=True)):
            moved = tuple(Block(block.start - room, block.stop - room) for block in blocks)
            stops = np.isin(tokens[row, room:], stop_ids)
            made = Trajectory(tokens[row, room:], when[row, room:], stops, moved, self._spec.mask_id)
            last = next((state for state in range(made.states) if made.finished(state)), made.states)
            found.append(attrs.evolve(made, blocks=moved[:last]) if early_stop else made)
        return found


def decode(engine: Engine, prompts: Prompts, chat: bool | None) -> list[Trajectory]:
    """Decode prompts as one batch and return what happened in each row.

    Raises:
        ConfigError: guidance is on, whose confidence no single forward pass has.
        InputError: as `Engine.generate`.
    """
    config, model = engine.config, engine.model
    if config.cfg_scale:
        raise ConfigError(
            f"cfg_scale = {config.cfg_scale}: the analysis recomputes without guidance; set cfg_scale = 0"
        )
    prepared = prepare(model, prompts, None, config.gen_length, infill=False, chat=chat)
    start, recorder = prepared.starts[0], TrajectoryRecorder()
    mask = prepared.attention_mask[:, :start]
    engine.generate(prepared.tokens[:, :start], attention_mask=mask, observers=[recorder])
    return recorder.trajectories(model.stop_ids, config.early_stop)
