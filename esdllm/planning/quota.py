"""Blocks with the masks they hold, and how many of those each step commits. Host integers only; imports no torch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise

import attrs

from esdllm.errors import ConfigError
from esdllm.plan import Block, Layout
from esdllm.planning.planners import Planners

__all__ = ["Quota", "checked", "counted", "cut"]


@attrs.frozen
class Quota:
    """A block, its masks in each row, and how many each of its steps may commit in each row."""

    number: int
    block: Block
    """the block; where every row has its own, the range in which they all lie"""
    length: int
    """M, positions of a block"""
    masked: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...] | None
    """by step and row; None if that depends on the logits"""
    reach: int | None = None
    """positions before each row's own block that its window reaches back to; None if all rows share the block"""
    suffix: tuple[int, ...] | None = None
    """positions right of the block that are seen; None for all"""
    within: Block | None = None
    """the block of attention that holds the block, in a block-causal model: what is right of it is not seen"""
    leads: bool = False
    """whether the block is the first token of `within`, which the row before decides as keys are written"""
    least: tuple[int, ...] = ()
    """by step, the least that each row commits, where `counts` is None; empty if that depends on the logits too"""
    limit: int = attrs.field(init=False)
    """the most that a row commits at one step"""
    left: tuple[tuple[int, ...], ...] = attrs.field(init=False)
    """for every planned step, each row's masks before it, if all goes as planned"""

    @limit.default
    def _limit(self) -> int:
        return self.length if self.counts is None else max(1, *(max(row) for row in self.counts))

    @left.default
    def _left(self) -> tuple[tuple[int, ...], ...]:
        found = [self.masked]
        for counts in self.counts or ():
            found.append(tuple(max(0, rest - count) for rest, count in zip(found[-1], counts, strict=True)))
        return tuple(found)

    @property
    def sight(self) -> int | None:
        """The first columns, which alone are seen, in a block-causal model; None in others."""
        if self.within is None:
            return None
        return self.within.start if self.leads else self.within.stop

    def at(self, step_in_block: int) -> tuple[int, ...]:
        """Return the rows' counts at a step; past the plan's end, what is left is committed at the last rate."""
        if self.counts is None:
            least = self.least[min(step_in_block, len(self.least) - 1)] if self.least else 0
            return (least,) * len(self.masked)
        if step_in_block < len(self.counts):
            return self.counts[step_in_block]
        return tuple(max(1, count) for count in self.counts[-1])

    def committed(self, step_in_block: int, certain: bool) -> range:
        """Return the numbers of positions that a step may commit, largest over the rows; `certain` if as planned."""
        if self.counts is None or not certain:
            return range((self.limit if self.counts is None else max(self.at(step_in_block))) + 1)
        most = max(map(min, self.at(step_in_block), self.left[step_in_block]))
        return range(most, most + 1)


def cut(planners: Planners, layout: Layout, block_length: int) -> list[Quota]:
    """Return the blocks that hold a mask in any row, with what their steps commit.

    Raises:
        ConfigError: a block or what is seen beyond it lies outside the canvas, or the counts do not suffice.
    """
    masks = layout.masks
    begin = min((row[0] for row in masks if row), default=0)
    end = max((row[-1] + 1 for row in masks if row), default=0)
    if begin == end:
        return []
    if planners.moves:
        first = checked(planners.blocks.next_block(begin, end, block_length), begin, end)
        length, masked = first.stop - first.start, [len(row) for row in masks]
        reach = min(planners.reach, begin)
        whole = Block(begin, end)
        counts, least = counted(planners, masked, end - begin, 1)
        return [
            Quota(0, whole, length, tuple(masked), counts, reach, _suffix(planners, whole, layout.length), least=least)
        ]
    found = []
    ranges = _ranges(planners, begin, end, block_length)
    for number, block in enumerate(ranges):
        masked = [bisect_left(row, block.stop) - bisect_left(row, block.start) for row in masks]
        if any(masked):
            length = block.stop - block.start
            counts, least = counted(planners, masked, length, len(ranges))
            suffix = _suffix(planners, block, layout.length)
            found.append(Quota(number, block, length, tuple(masked), counts, suffix=suffix, least=least))
    return found


def _ranges(planners: Planners, position: int, end: int, block_length: int) -> list[Block]:
    found = []
    while position < end:
        found.append(checked(planners.blocks.next_block(position, end, block_length), position, end))
        position = found[-1].stop
    return found


def checked(block: Block, start: int, end: int) -> Block:
    """Return a block that a schedule cut out of a range.

    Raises:
        ConfigError: it does not lie within.
    """
    if not start <= block.start < block.stop <= end:
        raise ConfigError(f"the block schedule cut {tuple(block)} out of {(start, end)}; a block lies within it")
    return block


def _suffix(planners: Planners, block: Block, length: int) -> tuple[int, ...] | None:
    """Return the positions right of a block that are seen; None if all are (see `PruningBlocks`)."""
    if planners.pruning is None:
        return None
    found = tuple(planners.pruning.suffix(block, length))
    bounded = not found or block.stop <= found[0] <= found[-1] < length
    if not bounded or any(a >= b for a, b in pairwise(found)):
        raise ConfigError(
            f"the block schedule sees {found} right of the block {tuple(block)} on a canvas of {length}; "
            "give ascending positions from the block's end to the canvas'"
        )
    return found


def counted(
    planners: Planners, masked: Sequence[int], length: int, blocks: int
) -> tuple[tuple[tuple[int, ...], ...] | None, tuple[int, ...]]:
    """Return how many positions each step commits in each row, of `masked` in one of so many blocks of `length`.

    None if the logits decide, and the least that each step commits then, empty if that depends on them too.

    Raises:
        ConfigError: the numbers do not suffice, or are told by a policy that takes decisions back or replaces them.
    """
    least = _by_block(planners, length, blocks)
    rows = [planners.unmasking.counts(number, blocks) if number else () for number in masked]
    if any(row is None for row in rows):
        return None, least
    if planners.revises:
        what = "take decisions back" if planners.revisions else "replace what it has decided"
        raise ConfigError(
            f"the unmasking policy may {what}, so the steps of a block cannot be planned; its counts return None"
        )
    if least:
        rows = [_sufficing(least, number) for number in masked]
    planned = [row for row in rows if row is not None]
    for number, row in zip(masked, planned, strict=True):
        if sum(row) < number or any(count < 0 for count in row):
            raise ConfigError(
                f"the unmasking policy planned {row} for {number} masks; counts are >= 0 and suffice for them"
            )
    steps = max(len(row) for row in planned)
    return tuple(tuple(row[min(step, len(row) - 1)] if row else 0 for row in planned) for step in range(steps)), ()


def _by_block(planners: Planners, length: int, blocks: int) -> tuple[int, ...]:
    """Return what the steps of a block commit by its length; empty if the masks alone count (see `BlockCounts`)."""
    found = None if planners.by_block is None else planners.by_block.block_counts(length, blocks)
    if found is None:
        return ()
    if sum(found) < length or min(found) < 1:
        raise ConfigError(
            f"the unmasking policy planned {found} for a block of {length}; its steps commit at least one each, and suffice"
        )
    return tuple(found)


def _sufficing(counts: Sequence[int], masked: int) -> tuple[int, ...]:
    """Return the first counts that suffice for `masked` masks."""
    steps = next(step for step, total in enumerate(accumulate(counts, initial=0)) if total >= masked)
    return tuple(counts[:steps])
