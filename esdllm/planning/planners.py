"""What planning asks of components: on the host, integers in and out, outside the step. Imports no torch.

Planners are this and no more. An unmasking policy and a cache store have a half that plans, and `esdllm.interfaces` the rest.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import attrs

from esdllm.plan import Block, Drift, Moment, Phase, Scope

__all__ = [
    "BlockCounts",
    "BlockSchedule",
    "LayeredRefresh",
    "LearningRefresh",
    "Planners",
    "PruningBlocks",
    "RefreshPolicy",
    "ReturningSkip",
    "SkipSchedule",
    "StepCounts",
    "StepPhases",
]


class SkipSchedule(Protocol):
    """How many positions each layer hands on when a step skips."""

    def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
        """Return one count a layer in [1, window], never growing: nothing is held of a position that was dropped.

        What may come back is up to `ReturningSkip`.

        `committed` is the number of positions committed at the last step (largest over the rows), `block` the number
        of positions in the block.
        """
        ...


@runtime_checkable
class ReturningSkip(SkipSchedule, Protocol):
    """A skip schedule that lets dropped positions back in, each with the hidden state that it had when it last went on there."""

    def returning(self, n_layers: int) -> tuple[int, ...]:
        """Return the layers, ascending, whose count may be above that of the layer before; they drop none in any window.

        What a position's hidden state was after each of them (before it, where positions drop within layers) is remembered at
        every step, so name few. Those go first that scored highest where they were dropped.
        """
        ...


class RefreshPolicy(Protocol):
    """Which positions a step computes, and when skipping pauses so that the caches become fresh."""

    def scope(self, moment: Moment) -> Scope:
        """Return the window of the step at `moment` and whether it is a refresh."""
        ...


@runtime_checkable
class LayeredRefresh(RefreshPolicy, Protocol):
    """A refresh policy whose refreshes may begin at a layer (`Scope.from_layer`), from what positions remember of its input.

    Below that layer a step computes the block alone, from it on the whole window.
    """

    def from_layers(self, n_layers: int) -> tuple[int, ...]:
        """Return the layers, ascending and above 0, from which a refresh may begin; the input of each is remembered."""
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


class StepCounts(Protocol):
    """How many positions each step commits: the half of an unmasking policy that plans."""

    def counts(self, masked: int, blocks: int) -> tuple[int, ...] | None:
        """Return the most positions that each step of a block with `masked` masks commits, of `blocks` blocks in all.

        Together they suffice for the masks. A step commits fewer only where fewer are eligible; what that leaves over
        is committed after the plan's end, at its last rate. None if the number depends on the logits: the runtime then
        asks the device after every step whether a mask is left. Host integers only.
        """
        ...


@runtime_checkable
class BlockCounts(StepCounts, Protocol):
    """The half of an unmasking policy that goes by a block's length, whichever of its positions are decided already."""

    def block_counts(self, length: int, blocks: int) -> tuple[int, ...] | None:
        """Return how many positions each step of a block of `length` commits, of `blocks` blocks in all: `view.quota`.

        Together they suffice for the whole block; one of which fewer are masked ends sooner. Where `counts` returns None, a step
        commits at least as many. None if it goes by the masks alone, as `counts` says. Host integers only.
        """
        ...


class StepPhases(Protocol):
    """What is read of the cache at each step: the half of a cache store that plans."""

    @property
    def persistent(self) -> bool:
        """Whether a position that is not computed can still be attended to."""
        ...

    def phase(self, step_in_block: int) -> Phase:
        """Return what the store does at a step; a SELECT step is always a refresh. Host integers only."""
        ...


@attrs.frozen
class Planners:
    """The components of a run as far as they plan, and what they can do beyond the least."""

    skip: SkipSchedule
    refresh: RefreshPolicy
    blocks: BlockSchedule
    unmasking: StepCounts
    store: StepPhases
    learning: LearningRefresh | None = None
    """the refresh policy, if it learns from drift"""
    pruning: PruningBlocks | None = None
    """the block schedule, if it hides what lies right of the block"""
    moves: bool = False
    """whether the block schedule places each row's block by itself (see `esdllm.MovingBlocks`)"""
    reach: int = 0
    """how many positions before it the window of a block that moves begins"""
    revisions: int = 0
    """how often the unmasking policy may put a position back (see `esdllm.RevokingPolicy`)"""
    by_block: BlockCounts | None = None
    """the unmasking policy, if it may go by a block's length"""
    returning: ReturningSkip | None = None
    """the skip schedule, if it lets positions back in"""
    layered: LayeredRefresh | None = None
    """the refresh policy, if its refreshes may begin at a layer"""
    edits: int | None = None
    """how many steps of a block without masks may still replace tokens; None if none ever does (see `esdllm.EditingPolicy`)"""

    @property
    def revises(self) -> bool:
        """Whether the unmasking policy looks again at what is decided."""
        return self.revisions > 0 or self.edits is not None
