"""What the checks of cache stores share: columns, and what is recalled of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from esdllm.interfaces import Cache
from esdllm.plugins.capabilities import closing, offset
from esdllm.testing.contracts.laws import law
from esdllm.views import CacheShape, Site

__all__ = ["all_columns", "closed_twice", "equal_law", "recalled"]


def all_columns(shape: CacheShape) -> Tensor:
    """Return (R, L), every column."""
    return torch.arange(shape.length).expand(shape.rows, -1)


def closed_twice(cache: Any) -> None:
    """Close a cache that can be closed, twice."""
    if (closable := closing(cache)) is not None:
        closable.close()
        closable.close()


def equal_law(what: str, found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Return if two tensors agree to `tolerance` times the largest of each vector.

    Raises:
        AssertionError: they do not; says by how much.
    """
    allowed = tolerance * expected.abs().amax(-1, keepdim=True)
    off = float(((found - expected).abs() - allowed).max())
    law(off <= 0, f"{what} come back off by {off:.3g} more than the tolerance of {tolerance} times their largest")


def recalled(cache: Cache, layer: int, site: Site, positions: Tensor, offsets: Tensor | None = None) -> Tensor:
    """Return what the runtime recalls; rows without padding if no offsets are told."""
    if (placed := offset(cache)) is None:
        return cache.recall(layer, site, positions)
    return placed.recall_at(
        layer, site, positions, torch.zeros(len(positions), dtype=torch.int64) if offsets is None else offsets
    )
