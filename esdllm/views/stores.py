"""What cache stores receive and return."""

from __future__ import annotations

from typing import NamedTuple

import attrs
import torch
from torch import Tensor

from esdllm.plan import Phase

__all__ = ["CacheShape", "CacheWrite", "KeyValue", "Memory"]


@attrs.frozen
class CacheShape:
    """What a cache store is asked to hold."""

    rows: int
    """R"""
    length: int
    """L, columns of the canvas"""
    n_layers: int
    """transformer layers"""
    n_kv_heads: int
    """G"""
    head_dim: int
    """D"""
    features: int
    """F of the remembered tensors"""
    remembered: tuple[int, ...]
    """layers at which the scored tensor is remembered; none for the key and value sites, which are cached anyway"""
    dtype: torch.dtype
    """of keys, values and remembered tensors"""
    device: torch.device
    """where to allocate"""
    compiled: bool = False
    """whether the cache is called inside a compiled step, where only tensor operations can be"""
    slotted: bool = False
    """whether steps are made over some of the rows, which come and go (see `SlottedCache`)"""


@attrs.frozen
class Memory:
    """What a cache takes at most, in bytes: what it holds, and the whole layers that a call copies for attention to read.

    Not counted is what grows with the positions that a call writes: it is of the step's size, as activations are.
    """

    device: int
    """where the model computes"""
    host: int = 0
    """in the host's memory, beside `device`; where the model computes on the host, the two add up"""
    disk: int = 0
    """in files"""


class CacheWrite(NamedTuple):
    """One layer's keys and values of the positions alive."""

    layer: int
    """number of the layer, from 0"""
    positions: Tensor
    """(R, N) int64; a position that occurs twice comes with equal rows, or is padding, whose keys nobody reads"""
    queries: Tensor
    """(R, M, H, D)"""
    keys: Tensor
    """(R, N, G, D)"""
    values: Tensor
    """(R, N, G, D)"""
    bias: Tensor | None
    """(R, L) 0 at tokens, -inf at padding and at what is pruned; None if all is read"""
    block: Tensor
    """(R, M) int64, the block's positions"""
    phase: Phase
    """what the store does beside writing"""
    padding: Tensor | None = None
    """(R,) int64, the columns at the head of each row that are padding, and all that `bias` hides; None if it hides
    nothing, or more"""
    offsets: Tensor | None = None
    """(R,) int64, each row's first column that is no padding, whatever `bias` hides beside; None where a write was made by
    hand"""


class KeyValue(NamedTuple):
    """What attention reads: keys and values (R, K, G, D), and which of them it leaves out.

    Strides are the store's choice; only the D numbers of a key lie side by side in any case.
    """

    keys: Tensor
    """(R, K, G, D)"""
    values: Tensor
    """(R, K, G, D)"""
    bias: Tensor | None = None
    """(R, K), of the queries' dtype, added to the logits of each key: 0 or -inf; None if all keys are read"""
    padding: Tensor | None = None
    """(R,) int64, the first keys of each row, which alone are left out; None where `bias` says more, or nothing"""
    query_blocks: Tensor | None = None
    """(R, N) int64, in a block-causal model the numbers of the queries' blocks: a query reads the keys whose number is no
    higher than its own; None if all queries read the same"""
    key_blocks: Tensor | None = None
    """(R, K) int64, the numbers of the keys' blocks; None likewise"""

    def first(self, count: int | None) -> KeyValue:
        """Return the first `count` of the keys, without a copy; all if None, or if there are no more."""
        if count is None or self.keys.shape[1] <= count:
            return self
        bias = None if self.bias is None else self.bias[:, :count]
        return KeyValue(self.keys[:, :count], self.values[:, :count], bias, self.padding)

    def shifts(self) -> Tensor | None:
        """Return (R, 1, K), or (R, N, K) where queries read different keys: 0 or -inf, as `bias`; None if all are read.

        For a backend that takes a mask by query and no numbers of blocks.
        """
        bias = None if self.bias is None else self.bias.unsqueeze(1)
        if self.query_blocks is None or self.key_blocks is None:
            return bias
        hidden = self.key_blocks.unsqueeze(1) > self.query_blocks.unsqueeze(2)
        bias = self.keys.new_zeros(()) if bias is None else bias
        return bias.expand(hidden.shape).masked_fill(hidden, float("-inf"))
