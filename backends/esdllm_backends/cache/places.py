"""Which lines of a cache are those of some of its rows."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from esdllm import CacheShape


@attrs.frozen(eq=False)
class Places:
    """Rows of a cache and the first columns of each, in memory that holds `columns` lines for every row, or row and head."""

    count: int
    """R, how many rows these are"""
    length: int
    """L, the columns that are used"""
    columns: int
    """the columns that a row has room for"""
    index: Tensor | None = None
    """(R,) int64, which rows these are; None if they are all that their memory holds, in order"""

    @classmethod
    def whole(cls, shape: CacheShape) -> Places:
        """Return the places of a whole cache."""
        return cls(shape.rows, shape.length, shape.length)

    def of(self, rows: slice | Tensor, length: int) -> tuple[Places, slice]:
        """Return the places of some rows and of the first `length` columns, and which of this cache's rows' memory they need.

        Neighbours, told as a slice, need their own memory alone.
        """
        if isinstance(rows, slice):
            first, stop, _ = rows.indices(self.count)
            return Places(stop - first, length, self.columns), slice(first, stop)
        return Places(len(rows), length, self.columns, rows), slice(0, self.count)

    @property
    def together(self) -> bool:
        """Whether the rows are all that their memory holds, in order."""
        return self.index is None

    def starts(self, device: torch.device, each: int = 1) -> Tensor:
        """Return (R, each) int64, the first line of each row, or of each of its heads."""
        if self.index is None:
            return torch.arange(self.count * each, device=device).view(self.count, each) * self.columns
        return (self.index.unsqueeze(1) * each + torch.arange(each, device=device)) * self.columns

    def lines(self, positions: Tensor, each: int = 1) -> Tensor:
        """Return (R each N,) int64, the lines of positions (R, N)."""
        return (self.starts(positions.device, each).unsqueeze(2) + positions.unsqueeze(1)).flatten()

    def all_lines(self, device: torch.device, each: int = 1) -> Tensor:
        """Return (R each L,) int64, the lines of every column that is used."""
        return self.lines(torch.arange(self.length, device=device).expand(self.count, -1), each)
