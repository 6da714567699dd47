"""Eviction of keys and values outside the block (Sparse-dLLM, arXiv 2508.02558)."""

from __future__ import annotations

from copy import copy

import attrs
import torch
import torch.nn.functional as F
from attrs import validators
from torch import Tensor

from esdllm import CacheShape, CacheWrite, KeyValue, Memory, Phase, Site, option
from esdllm_backends.cache.dense import DenseCache


@attrs.frozen
class SparseStore:
    """Dense, but after `delay_step` a block attends only to the best share of the positions outside it."""

    keep: float = option(
        "share of the positions outside the block that stay", validators.gt(0.0), validators.le(1.0), default=0.5
    )
    delay_step: int = option("step within the block that chooses them", validators.ge(0), default=1)

    @property
    def persistent(self) -> bool:
        """What is written stays."""
        return True

    def problems(self, shape: CacheShape) -> list[str]:
        """Return nothing: it serves everywhere."""
        return []

    def phase(self, step_in_block: int) -> Phase:
        """Choose at `delay_step`, then read what was chosen until the block ends."""
        return (Phase.ALL, Phase.SELECT, Phase.KEPT)[
            (step_in_block >= self.delay_step) + (step_in_block > self.delay_step)
        ]

    def memory(self, shape: CacheShape) -> Memory:
        """Return what dense takes, every layer's choice, and what a layer copies: all it reads, or to choose, keys in float32."""
        places = shape.rows * shape.length
        choice = shape.n_layers * places * (torch.int64.itemsize + shape.dtype.itemsize)
        read = 2 * places * shape.n_kv_heads * shape.head_dim * max(shape.dtype.itemsize, torch.float32.itemsize)
        return Memory(DenseCache.nbytes(shape) + choice + read)

    def allocate(self, shape: CacheShape) -> _SparseCache:
        """Return an empty cache."""
        return _SparseCache(shape, self.keep)


class _SparseCache:
    """A dense cache, and for every layer the positions outside the block that are read."""

    def __init__(self, shape: CacheShape, keep: float) -> None:
        self.dense = DenseCache(shape)
        self.share = keep
        size = (shape.n_layers, shape.rows, shape.length)
        self.kept = torch.zeros(size, dtype=torch.int64, device=shape.device)
        self.kept_bias = torch.zeros(size, dtype=shape.dtype, device=shape.device)
        self.rows: slice | Tensor = slice(0, shape.rows)
        """those of `kept` that this cache is of"""

    def slots(self, rows: slice | Tensor, length: int) -> _SparseCache:
        """Return a cache over some rows and their first columns, in this one's memory."""
        found = copy(self)
        found.dense, found.rows = self.dense.slots(rows, length), rows
        return found

    def reset(self) -> None:
        """Zero everything."""
        self.dense.reset()
        self.kept[:, self.rows] = 0
        self.kept_bias[:, self.rows] = 0

    def update(self, write: CacheWrite) -> KeyValue:
        """Write everything; return everything, or what was chosen and the block."""
        full = self.dense.update(write)
        length, block = full.keys.shape[1], write.block.shape[1]
        size = int(self.share * (length - block))
        if write.phase is Phase.SELECT and size:
            self._choose(write, full.keys, size)
        if write.phase is not Phase.KEPT:
            return full
        index = torch.cat([self.kept[write.layer, self.rows, :size], write.block], dim=1)
        bias = torch.cat(
            [self.kept_bias[write.layer, self.rows, :size], torch.zeros_like(write.block, dtype=full.keys.dtype)], 1
        )
        where = index[..., None, None].expand(*index.shape, *full.keys.shape[2:])
        return KeyValue(full.keys.gather(1, where), full.values.gather(1, where), None if write.bias is None else bias)

    def _choose(self, write: CacheWrite, keys: Tensor, size: int) -> None:
        """Keep the `size` positions outside the block whose keys answer the mean query best, fewer in a padded row."""
        columns = torch.arange(keys.shape[1], device=keys.device).expand(keys.shape[:2])
        outside = (columns < write.block[:, :1]) | (columns > write.block[:, -1:])
        where = (
            columns.masked_fill(~outside, keys.shape[1]).sort(dim=1).values[:, : keys.shape[1] - write.block.shape[1]]
        )
        real = torch.ones_like(where, dtype=torch.bool) if write.bias is None else write.bias.gather(1, where) == 0
        query = _mean_query(write).unflatten(1, (keys.shape[2], -1)).mean(2)  # (R, G, D)
        score = torch.einsum("rgd,rlgd->rl", query, keys.float()).gather(1, where).masked_fill(~real, float("-inf"))
        pooled = F.max_pool1d(score.unsqueeze(1), 3, stride=1, padding=1).squeeze(1).masked_fill(~real, float("-inf"))
        best = pooled.topk(size, dim=1).indices
        taken = (real.sum(1, keepdim=True).double() * self.share).long()  # in each row, as `size` is counted
        unread = torch.arange(size, device=keys.device) >= taken
        self.kept[write.layer, self.rows, :size] = where.gather(1, best)
        self.kept_bias[write.layer, self.rows, :size] = torch.zeros_like(best, dtype=keys.dtype).masked_fill(
            unread, float("-inf")
        )

    def recall(self, layer: int, site: Site, positions: Tensor) -> Tensor:
        """Return what the dense cache holds."""
        return self.dense.recall(layer, site, positions)

    def remember(self, layer: int, positions: Tensor, x: Tensor) -> None:
        """Store in the dense cache."""
        self.dense.remember(layer, positions, x)


def _mean_query(write: CacheWrite) -> Tensor:
    """Return (R, H, D) float32, the mean over the positions that are no padding."""
    queries = write.queries.float()
    if write.bias is None:
        return queries.mean(1)
    real = (write.bias.gather(1, write.positions) == 0)[..., None, None]
    return (queries * real).sum(1) / real.sum(1).clamp(min=1)
