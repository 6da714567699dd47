"""Block schedules: what is decoded together, and how much of the canvas is seen meanwhile."""

from __future__ import annotations

from typing import Any

import attrs
from attrs import validators
from torch import Tensor

from esdllm import Block, BlockSchedule, BlockView, MovingBlocks, option


@attrs.frozen
class FixedBlocks:
    """Blocks of block_length, left to right; the last one may be shorter."""

    def next_block(self, start: int, end: int, block_length: int) -> Block:
        """Return the next block_length positions."""
        return Block(start, min(start + block_length, end))


def reach_option() -> Any:
    """Return the option of how far before a moving block its windows begin."""
    return option(
        "positions before the block that every step computes too, so that late commits reach the cache",
        validators.ge(0),
        default=8,
    )


@attrs.frozen
class SlidingBlocks:
    """A block that begins at each row's first undecided position, and so slides on with every commit there.

    DSB's constant variant, arXiv 2602.05992; one that grows is `growing`. Whatever is committed more than `reach` before the
    block waits for the next refresh to reach the cache.
    """

    reach: int = reach_option()

    def next_block(self, start: int, end: int, block_length: int) -> Block:
        """Return the first block_length positions."""
        return Block(start, min(start + block_length, end))

    def starts(self, view: BlockView) -> Tensor:
        """Return the first undecided positions."""
        return view.first


@attrs.frozen
class OwnBlocks:
    """Fixed blocks in which a row that has decided its block goes on to the next without waiting for the others."""

    reach: int = reach_option()

    def next_block(self, start: int, end: int, block_length: int) -> Block:
        """Return the first block_length positions."""
        return Block(start, min(start + block_length, end))

    def starts(self, view: BlockView) -> Tensor:
        """Return where the block begins that holds the first undecided position."""
        return view.begin + (view.first - view.begin).div(view.length, rounding_mode="floor") * view.length


def _one_for_all(instance: Any, attribute: Any, value: Any) -> None:
    if isinstance(value, MovingBlocks):
        raise ValueError(
            "a suffix is pruned right of one block for all rows, such as 'fixed'; this schedule gives each its own"
        )


@attrs.frozen
class PrunedBlocks:
    """Another schedule's blocks, with most of what lies right of the block hidden: the next `window` positions are seen.

    Streaming-dLLM, arXiv 2601.17917, which also sees the canvas' last position; DPad, arXiv 2508.14148. What is hidden is
    neither computed nor attended to. What comes into sight is computed at the block's first step, which is a refresh.
    """

    of: BlockSchedule = option("whose blocks", _one_for_all, factory=FixedBlocks, kind="blocks")
    window: int = option(
        "positions right of the block that are seen", validators.ge(0), default=32, tune=(0, 16, 32, 64, 128)
    )
    last: bool = option("whether the canvas' last position is seen as well", default=True)

    def next_block(self, start: int, end: int, block_length: int) -> Block:
        """Return the other's next block."""
        return self.of.next_block(start, end, block_length)

    def suffix(self, block: Block, length: int) -> tuple[int, ...]:
        """Return the next `window` positions and the last one."""
        near = range(block.stop, min(block.stop + self.window, length))
        return (*near, length - 1) if self.last and near.stop < length else tuple(near)
