"""A public checkpoint, as a family tells of it."""

from __future__ import annotations

import attrs

__all__ = ["Published"]


@attrs.frozen
class Published:
    """A public checkpoint of a family, by what its card says; none of its files is needed to tell it."""

    parameters: float
    """all of them, in 10^9"""
    licence: str
    """as its card calls it; empty where that was not looked up"""
    active: float | None = None
    """parameters that one position computes with, in 10^9; None for all"""
    block_size: int | None = None
    """positions of a block of attention; None where every position sees every other"""
    lacks: str = ""
    """what its config.json lacks, as a user tells it behind the family's name: block_size=8"""

    @property
    def attention(self) -> str:
        """Which positions a position sees, in a word or two."""
        return "all" if self.block_size is None else f"blocks of {self.block_size}"
