"""Block schedules: what is decoded together."""

from __future__ import annotations

import attrs

from esdllm import Block


@attrs.frozen
class FixedBlocks:
    """Blocks of block_length, left to right; the last one may be shorter."""

    def next_block(self, start: int, end: int, block_length: int) -> Block:
        """Return the next block_length positions."""
        return Block(start, min(start + block_length, end))
