"""Planning for block-causal models: each block of attention is a canvas of its own behind keys that are final.

A block is decoded over the keys of those before it. Once it is decided its keys are computed once more, from its tokens, and
final: together with the next block's first step, which gives the same, for nothing of a block is seen by those before it, and
reads the weights once less. Where the last row of that pass decides the next block's first token, it is a step of its own.

Host integers only; imports no torch.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from esdllm.errors import ConfigError
from esdllm.plan import Block, BlockCausal, Layout, Phase, Window
from esdllm.planning.planners import Planners
from esdllm.planning.quota import Quota, checked, counted

__all__ = ["check_causal", "check_step", "cut_causal"]


def check_causal(planners: Planners) -> None:
    """Refuse a block schedule that makes no sense for a block-causal model.

    Raises:
        ConfigError: it does not.
    """
    if planners.moves:
        raise ConfigError(
            "a block-causal model decodes its blocks one after the other, and this block schedule gives every row a block of "
            'its own place; choose blocks = "fixed"'
        )
    if planners.pruning is not None:
        raise ConfigError(
            'a block-causal model sees nothing right of its block, so there is no suffix to prune; choose blocks = "fixed"'
        )


def check_step(window: Window, phase: Phase) -> None:
    """Refuse a window or a phase that makes no sense for a block-causal model.

    Raises:
        ConfigError: it does not.
    """
    if phase is not Phase.ALL:
        raise ConfigError(
            "the cache store chooses among the keys of a whole canvas, and a block-causal model reads those up to its block's "
            'end; choose cache = "dense"'
        )
    if window is Window.OPEN:
        raise ConfigError(
            "a window of all that is undecided holds positions beyond its block, which a block-causal model does not see; "
            'choose another refresh, such as "dual-cache"'
        )


def cut_causal(planners: Planners, layout: Layout, attention: BlockCausal, block_length: int) -> list[Quota]:
    """Return the blocks that hold a mask in any row, each within a block of attention, with what their steps commit.

    Raises:
        ConfigError: a block lies outside the block of attention, or the counts do not suffice; or prompts that are one block
            end in different ones.
    """
    check_causal(planners)
    if attention.whole_prompt and len({row[0] // attention.size for row in layout.masks if row}) > 1:
        raise ConfigError(
            "each prompt is one block here, and these rows' first masks lie in different blocks, as canvases to fill in may have "
            "them; decode them one by one"
        )
    parts = [part for part in _parts(planners, layout, attention, block_length) if any(part.masked)]
    number, quotas = sum(not part.leads for part in parts), list[Quota]()
    behind = 0
    for leads, block, within, masked in parts:
        length = block.stop - block.start
        counts, least = ((masked,), ()) if leads else counted(planners, masked, length, number)
        quotas.append(Quota(behind, block, length, masked, counts, within=within, leads=leads, least=least))
        behind += not leads
    return quotas


class _Part(NamedTuple):
    """What is decided together."""

    leads: bool
    block: Block
    within: Block
    masked: tuple[int, ...]


def _parts(planners: Planners, layout: Layout, attention: BlockCausal, block_length: int) -> Iterator[_Part]:
    """Yield what is decided together, in order, from the first mask of any row on."""
    shift, size = layout.logit_shift, attention.size
    first = min((row[0] + shift for row in layout.masks if row), default=layout.length)
    for start in range(first // size * size, layout.length, size):
        within = Block(start, min(start + size, layout.length))
        led = attention.leads and start > 0
        if led:
            block = Block(start - shift, start - shift + 1)
            yield _Part(True, block, within, _masked(layout, *block))
        position = start
        while position < within.stop:
            cut = checked(planners.blocks.next_block(position, within.stop, block_length), position, within.stop)
            position = cut.stop
            block = Block(max(start, cut.start - shift), cut.stop - shift)  # the positions that decide its tokens
            if block.start < block.stop:
                yield _Part(False, block, within, _masked(layout, max(block.start, start + led - shift), block.stop))


def _masked(layout: Layout, start: int, stop: int) -> tuple[int, ...]:
    """Return each row's masks in a range."""
    return tuple(max(0, bisect_left(row, stop) - bisect_left(row, start)) for row in layout.masks)
