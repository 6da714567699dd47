"""What planning asks of components: host integers, and nothing of tensors. Imports no torch.

The protocols of `esdllm.interfaces` say the same in full; those need torch, and planning does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from esdllm.plan import Block, Drift, Moment, Phase, Scope

__all__ = ["Planners", "Skip"]


class Skip(Protocol):
    """What is asked of a skip schedule."""

    def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
        """Return one count a layer."""
        ...


class _Refresh(Protocol):
    def scope(self, moment: Moment) -> Scope: ...


class _Learning(Protocol):
    @property
    def learned(self) -> tuple[float, ...]: ...

    def learn(self, moment: Moment, drift: Drift) -> Sequence[float]: ...


class _Blocks(Protocol):
    def next_block(self, start: int, end: int, block_length: int) -> Block: ...


class _Pruning(Protocol):
    def suffix(self, block: Block, length: int) -> tuple[int, ...]: ...


class _Unmasking(Protocol):
    def counts(self, masked: int, blocks: int) -> tuple[int, ...] | None: ...


class _Store(Protocol):
    @property
    def persistent(self) -> bool: ...

    def phase(self, step_in_block: int) -> Phase: ...


@attrs.frozen
class Planners:
    """The host half of the components that plan, and what they can do beyond the least."""

    skip: Skip
    refresh: _Refresh
    blocks: _Blocks
    unmasking: _Unmasking
    store: _Store
    learning: _Learning | None = None
    """the refresh policy, if it learns from drift (see `LearningRefresh`)"""
    pruning: _Pruning | None = None
    """the block schedule, if it hides what lies right of the block (see `PruningBlocks`)"""
    moves: bool = False
    """whether the block schedule places each row's block by itself (see `MovingBlocks`)"""
    reach: int = 0
    """how many positions before it the window of a block that moves begins"""
    revisions: int = 0
    """how often the unmasking policy may put a position back (see `RevokingPolicy`)"""
