"""Writing keys and values into a cache's lines with one Triton kernel, on a CUDA GPU."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

__all__ = ["write_lines"]


def write_lines(keys: Tensor, values: Tensor, positions: Tensor, new_keys: Tensor, new_values: Tensor) -> None:
    """Write new keys and values (R, N, G, D) into lines (R G L, D), a head's L lines together, at positions (R, N) int64.

    A position that comes twice in a row must come with equal numbers.
    """
    rows, window, heads, dim = new_keys.shape
    length = len(keys) // (rows * heads)
    blocks = triton.next_power_of_2(heads), triton.next_power_of_2(dim)
    new_keys, new_values = (x if x.stride(3) == 1 else x.contiguous() for x in (new_keys, new_values))
    _write[(rows, window)](
        keys, values, positions, new_keys, new_values,
        positions.stride(0), positions.stride(1), new_keys.stride(0), new_keys.stride(1), new_keys.stride(2),
        new_values.stride(0), new_values.stride(1), new_values.stride(2), heads, length, dim, *blocks,
    )  # fmt: skip


@triton.jit
def _write(
    keys, values, positions, new_keys, new_values,
    position_row, position_step, key_row, key_position, key_head,
    value_row, value_position, value_head, heads, length, dim, HEADS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    row, number = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    position = tl.load(positions + row * position_row + number * position_step)
    head = tl.arange(0, HEADS)[:, None]
    feature = tl.arange(0, DIM)[None, :]
    there = (head < heads) & (feature < dim)
    target = ((row * heads + head) * length + position) * dim + feature
    key = tl.load(new_keys + row * key_row + number * key_position + head * key_head + feature, there, 0.0)
    tl.store(keys + target, key, there)
    value = tl.load(new_values + row * value_row + number * value_position + head * value_head + feature, there, 0.0)
    tl.store(values + target, value, there)
