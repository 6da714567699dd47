"""Queries of several blocks some at a time, so that the mask by query that is made for them stays small."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from esdllm import KeyValue

__all__ = ["in_parts"]

_MASKED = 1 << 23  # pairs of a query and a key of which the mask is held at once


def in_parts(attend: Callable[[Tensor, KeyValue], Tensor], queries: Tensor, read: KeyValue) -> Tensor:
    """Return (R, N, H, D): what `attend` gives of the queries (R, N, H, D), all at once where all read the same."""
    if read.query_blocks is None:
        return attend(queries, read)
    rows, length, groups = read.keys.shape[:3]
    at_once = max(1, _MASKED // (rows * length * (queries.shape[2] // groups)))
    parts = zip(queries.split(at_once, 1), read.query_blocks.split(at_once, 1), strict=True)
    attended = [attend(asked, read._replace(query_blocks=blocks)) for asked, blocks in parts]
    return attended[0] if len(attended) == 1 else torch.cat(attended, 1)
