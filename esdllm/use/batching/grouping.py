"""Which prompts are decoded together."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["alike"]


def alike(lengths: Sequence[int], batch: int) -> list[tuple[int, ...]]:
    """Return the indices of `lengths` in groups of at most `batch`, each of like length, the longest first.

    So little is padded, and a batch that does not fit into memory is the first. Equal lengths stay in their order.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [tuple(order[start : start + batch]) for start in range(0, len(order), batch)]
