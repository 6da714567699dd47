"""Planners: on the host, integers in and out, outside the step. They touch no tensor."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from esdllm.plan import Block, Drift, Moment, Scope

__all__ = ["BlockSchedule", "LearningRefresh", "PruningBlocks", "RefreshPolicy", "SkipSchedule"]


class SkipSchedule(Protocol):
    """How many positions each layer hands on when a step skips."""

    def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
        """Return one count a layer, never growing, in [1, window].

        `committed` is the number of positions committed at the last step (largest over the rows), `block` the number
        of positions in the block.
        """
        ...


class RefreshPolicy(Protocol):
    """Which positions a step computes, and when skipping pauses so that the caches become fresh."""

    def scope(self, moment: Moment) -> Scope:
        """Return the window of the step at `moment` and whether it is a refresh."""
        ...


@runtime_checkable
class LearningRefresh(RefreshPolicy, Protocol):
    """A refresh policy that goes by how stale its refreshes found the caches. What it has learned is kept by the runtime."""

    @property
    def learned(self) -> tuple[float, ...]:
        """What is known before the first refresh, from which every run begins."""
        ...

    def learn(self, moment: Moment, drift: Drift) -> tuple[float, ...]:
        """Return what `moment.learned` becomes after the refresh at `moment`, which found `drift`.

        Called once for every refresh but the first. The drift is read from the device, one wait a refresh.
        """
        ...


class BlockSchedule(Protocol):
    """Cuts the positions to decide into blocks."""

    def next_block(self, start: int, end: int, block_length: int) -> Block:
        """Return the block that follows when everything before `start` is decided; `end` bounds it."""
        ...


@runtime_checkable
class PruningBlocks(BlockSchedule, Protocol):
    """A block schedule that hides most of what lies right of the block, as if the canvas held only the rest."""

    def suffix(self, block: Block, length: int) -> tuple[int, ...]:
        """Return the positions right of `block`, ascending and below `length`, that are seen while it is decoded."""
        ...
