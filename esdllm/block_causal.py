"""Attention by blocks: which positions a position sees, and how keys are written. Host integers only; imports no torch."""

from __future__ import annotations

from typing import Literal, get_args

import attrs

from esdllm.errors import CheckpointError, brief

__all__ = ["BlockCausal", "Grid"]

Grid = Literal["start", "prompt-end"]
"""Where blocks of attention begin: counted from a row's first token, or from its prompt's end."""


@attrs.frozen
class BlockCausal:
    """Attention in which a position sees its own block and all blocks before it, and none behind.

    Raises:
        CheckpointError: a field is none that it may be.
    """

    size: int
    """b, positions of a block"""
    grid: Grid = "start"
    """where blocks begin"""
    written: int | None = None
    """a divisor of `size`, the blocks in which keys of prompt and finished blocks are written; None for `size`, 1 is causally"""
    leads: bool = False
    """whether the last row that such a write computes decides the first token of the block that follows"""
    whole_prompt: bool = False
    """whether the prompt is one block, whatever its length"""
    fills: bool = False
    """whether an answer that ends inside a block is decoded up to the block's end, and cut"""

    def __attrs_post_init__(self) -> None:
        if type(self.size) is not int or self.size < 1:
            raise CheckpointError(
                f"a block of attention has size {brief(self.size)}; give a whole number of at least 1"
            )
        if self.grid not in get_args(Grid):
            raise CheckpointError(f"blocks of attention begin at {brief(self.grid)}; give 'start' or 'prompt-end'")
        for name in ("leads", "whole_prompt", "fills"):
            if type(value := getattr(self, name)) is not bool:
                raise CheckpointError(f"{name} is {brief(value)}; give True or False")
        if self.whole_prompt and (self.grid != "prompt-end" or self.written is not None):
            raise CheckpointError(
                "a prompt that is one block ends where blocks begin, and its keys are written as it is seen; give grid = "
                f"'prompt-end' and written = None with whole_prompt, not {brief(self.grid)} and {brief(self.written)}"
            )
        if self.written is not None and (type(self.written) is not int or self.written < 1 or self.size % self.written):
            raise CheckpointError(
                f"keys are written in blocks of {brief(self.written)}; give a divisor of the block's size {self.size}, or None"
            )

    @property
    def write_size(self) -> int:
        """The positions of a block where keys are written."""
        return self.written or self.size

    def before(self, prompt: int) -> int:
        """Return the columns of padding before a prompt of so many tokens, so that a block begins where it should."""
        return -prompt % self.size if self.grid == "prompt-end" else 0

    def behind(self, length: int) -> int:
        """Return the masks to put behind a row of so many columns, from a block's begin on."""
        return -length % self.size if self.fills else 0

    def columns(self, length: int) -> int:
        """Return the most columns that a row of so many tokens takes that is alone, with what is put before and behind."""
        return length + (self.size - 1) * ((self.grid == "prompt-end") + self.fills)
