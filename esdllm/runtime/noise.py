"""Noise by counting: a hash of (seed, step, position, index) instead of a generator's state.

A row's noise is the same alone or in a batch, padded or not, on every device, eager or compiled, and nothing has to be carried
from step to step.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["gumbel", "uniform"]

_MASK = 0xFFFFFFFF
_MULTIPLIER = 0x045D9F3B  # below 2**31, so that a product with 32 bits never overflows int64


def _hash(x: Tensor) -> Tensor:
    """Return 32 well mixed bits of x, an int64 tensor of values in [0, 2**32): two xor-shift-multiply rounds."""
    x = ((x >> 16) ^ x) * _MULTIPLIER & _MASK
    x = ((x >> 16) ^ x) * _MULTIPLIER & _MASK
    return (x >> 16) ^ x


def uniform(seeds: Tensor, step: Tensor, positions: Tensor, index: int | Tensor, stream: int = 0) -> Tensor:
    """Return (B, N, K) float64, uniform in the open interval (0, 1), of 2**32 values.

    seeds (B,), step (B,) or () and positions (B, N) are int64. `index` (B, N, K) or (K,) int64 says which numbers of a position's
    sequence are wanted; an int K, the first K. `stream` keeps apart two uses of noise in one step.
    """
    seed = _hash((_hash(seeds & _MASK) + (seeds >> 32)) & _MASK)
    key = _hash((seed + step * 0x9E3779B + stream * 0x85EBCA7) & _MASK)
    key = _hash((key.unsqueeze(-1) + positions * 0xC2B2AE3) & _MASK)
    if isinstance(index, int):
        index = torch.arange(index, device=positions.device)
    bits = _hash((key.unsqueeze(-1) + _hash(index)) & _MASK)
    return (bits.double() + 0.5) / 2.0**32


def gumbel(seeds: Tensor, step: Tensor, positions: Tensor, index: int | Tensor, stream: int = 0) -> Tensor:
    """Return (B, N, K) float64, standard Gumbel noise; arguments as for `uniform`.

    The arg-max of logits / T + gumbel is a sample at temperature T.
    """
    return -torch.log(-torch.log(uniform(seeds, step, positions, index, stream)))
