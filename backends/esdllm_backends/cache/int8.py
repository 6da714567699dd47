"""Keys, values and remembered tensors in 8 bits, with one scale for every position and head."""

from __future__ import annotations

from copy import copy

import attrs
import torch
from torch import Tensor

from esdllm import CacheShape, Memory
from esdllm_backends.cache.dense import DenseCache, DenseStore, Held

_LARGEST = 127


@attrs.frozen
class Int8Store(DenseStore):
    """As dense, in a quarter of float32's or about half of bfloat16's memory; lossy: each number is off by up to scale / 2."""

    def memory(self, shape: CacheShape) -> Memory:
        """Return what it takes: numbers, scales, and one layer's keys and values unpacked, which go through float32."""
        numbers = shape.rows * shape.length * shape.n_kv_heads * shape.head_dim
        passing = 0 if shape.dtype is torch.float32 else numbers * torch.float32.itemsize
        return Memory(DenseCache.nbytes(shape, _Int8) + 2 * numbers * shape.dtype.itemsize + passing)

    def allocate(self, shape: CacheShape) -> DenseCache:
        """Return an empty cache; one layer is unpacked at a time."""
        return DenseCache(shape, _Int8)


class _Int8(Held):
    """Lines of W numbers in int8, each with a float32 scale: its largest number is 127 scales."""

    def __init__(self, lines: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.numbers = torch.zeros(lines, width, dtype=torch.int8, device=device)
        self.scales = torch.zeros(lines, 1, dtype=torch.float32, device=device)
        self.dtype = dtype

    def between(self, start: int, stop: int) -> _Int8:
        found = copy(self)
        found.numbers, found.scales = self.numbers[start:stop], self.scales[start:stop]
        return found

    @staticmethod
    def nbytes(lines: int, width: int, dtype: torch.dtype) -> int:
        """Return the bytes that it takes."""
        return lines * (width + torch.float32.itemsize)

    def reset(self) -> None:
        self.numbers.zero_()
        self.scales.zero_()

    def write(self, index: Tensor, x: Tensor) -> None:
        x = x.float()
        scales = x.abs().amax(-1, keepdim=True) / _LARGEST
        numbers = (x / scales.clamp(min=torch.finfo(torch.float32).tiny)).round()
        self.numbers.index_copy_(0, index, numbers.to(torch.int8))
        self.scales.index_copy_(0, index, scales)

    def all(self) -> Tensor:
        return (self.numbers * self.scales).to(self.dtype)

    def take(self, index: Tensor) -> Tensor:
        numbers, scales = (x.index_select(0, index) for x in (self.numbers, self.scales))
        return (numbers * scales).to(self.dtype)
