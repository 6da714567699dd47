"""Block schedules whose blocks end where the steps themselves tell: with what is decided, or at the end of a sentence."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import Block, BlockView, EndView, option
from esdllm_policies.blocks import reach_option
from esdllm_policies.unmasking import probability_option, token_ids

__all__ = ["AdaBlocks", "GrowingBlocks"]


@attrs.frozen
class GrowingBlocks:
    """A block from each row's first undecided position on, whose end moves one to the right with every position committed.

    DSB, arXiv 2602.05992. It begins with block_length positions. What is computed is as long as the block can become: with no
    `limit` everything that is left, so a cache gains by a limit alone. A `limit` of block_length is the paper's constant variant.
    """

    limit: int | None = option(
        "positions of a block at most; none if it may grow to the answer's end",
        validators.optional(validators.ge(1)),
        default=None,
        tune=(32, 48, 64, 128),
    )
    reach: int = reach_option()

    def next_block(self, start: int, end: int, block_length: int) -> Block:
        """Return the longest that a block can become."""
        return Block(start, end if self.limit is None else min(start + self.limit, end))

    def starts(self, view: BlockView) -> Tensor:
        """Return the first undecided positions."""
        return view.first

    def ends(self, view: EndView) -> Tensor:
        """Return block_length and what is committed behind the row's begin, within the limit."""
        ends = (view.begins + view.length + view.committed).minimum(view.stops)
        return ends if self.limit is None else ends.minimum(view.first + self.limit)


@attrs.frozen
class AdaBlocks:
    """Blocks that end with a delimiter, if the model is sure of one near by at the block's first step; else of block_length.

    AdaBlock-dLLM, arXiv 2509.26432: of the candidates in the next `share` of the answer the surest delimiter ends the block. What
    is computed is as long as a block can become, from the row's first undecided position on.
    """

    delimiters: Sequence[int] = option(
        "token ids that end a block, such as a newline's", token_ids, converter=tuple, default=(198,)
    )
    delimiter_threshold: float = probability_option(
        0.3, "confidence from which on a delimiter ends the block", (0.1, 0.2, 0.3, 0.4, 0.5)
    )
    share: float = option(
        "share of the answer in which it is looked for",
        validators.gt(0.0),
        validators.le(1.0),
        default=0.25,
    )
    reach: int = reach_option()

    def next_block(self, start: int, end: int, block_length: int) -> Block:
        """Return the longest that a block can become."""
        return Block(start, min(start + max(int((end - start) * self.share), block_length), end))

    def starts(self, view: BlockView) -> Tensor:
        """Return the first undecided positions."""
        return view.first

    def ends(self, view: EndView) -> Tensor:
        """Return where the row's block ended, or if that is decided, where the next one does."""
        first = view.first.unsqueeze(1)
        reach = ((view.stops - view.begins) * self.share).long().unsqueeze(1)
        near = (view.columns >= first) & (view.columns < (first + reach).minimum(view.stops.unsqueeze(1)))
        found = torch.zeros_like(near)
        for token in self.delimiters:
            found = found | (view.tokens == token)
        sure = view.confidence.masked_fill(~(found & near), -1.0).max(1, keepdim=True)
        delimiter = view.columns.gather(1, sure.indices).squeeze(1) + 1
        usual = (view.first + view.length).minimum(view.stops)
        chosen = torch.where(sure.values.squeeze(1) >= self.delimiter_threshold, delimiter, usual)
        return torch.where(view.first >= view.ends, chosen, view.ends)
