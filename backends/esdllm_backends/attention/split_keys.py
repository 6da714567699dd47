"""Attention of few queries over many keys, as two Triton kernels: the keys are split between programs, then put together.

Source: Flash-Decoding (pytorch.org/blog/flash-decoding), and the softmax as it goes along of FlashAttention (arXiv 2205.14135).
"""

from __future__ import annotations

import math
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["attend_splitting"]

_KEYS = 64  # that a program reads at once, of up to 128 numbers of two bytes
_LINES = 64  # queries that a program takes at most, of two bytes a number
_LEAST = 16  # that a tensor core multiplies
_FEWEST = 128  # keys a program, below which starting it costs more than what it takes over
_WAVES = 2  # programs wanted for each multiprocessor
_WHERE_INTERPRETED = 132  # multiprocessors of an H100


def attend_splitting(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    bias: Tensor | None,
    padding: Tensor | None,
    splits: int = 0,
    query_blocks: Tensor | None = None,
    key_blocks: Tensor | None = None,
) -> Tensor:
    """Return attention (R, N, H, D) of queries (R, N, H, D) over keys and values (R, K, G, D) of any strides.

    Of a row the first `padding` (R,) int64 keys are left out; where that is not told, those whose `bias` (R, K)
    is not 0. A key that is left out is not read. With `query_blocks` (R, N) and `key_blocks` (R, K) int64 a query leaves out the
    keys whose number is higher than its own, too. `splits` says between how many programs a row's keys are split;
    0 goes by the device and the shapes. Products, softmax and sums are float32, the weights rounded to the values' dtype.
    """
    queries, keys, values = (x if x.stride(3) == 1 else x.contiguous() for x in (queries, keys, values))
    (rows, window, heads, dim), (length, groups) = queries.shape, keys.shape[1:3]
    each = heads // groups
    size = max(_LEAST, triton.next_power_of_2(dim))
    wide = queries.itemsize > 2
    large = wide or size > 128  # of which less fits into a multiprocessor's memory
    lines = _LEAST if wide else min(max(_LEAST, triton.next_power_of_2(window * each)), _LINES)
    tiles, pairs = triton.cdiv(window * each, lines), rows * groups
    chunk = _chunk(length, splits or _wanted(tiles * pairs, length, queries.device))
    parts = triton.cdiv(length, chunk)
    found = queries.new_empty((parts, *queries.shape), dtype=queries.dtype if parts == 1 else torch.float32)
    sums = queries.new_empty((parts, rows, window, heads), dtype=torch.float32)
    bias = None if padding is not None else bias
    _attend[(tiles, pairs, parts)](
        queries, keys, values, bias, padding, query_blocks, key_blocks, found, sums,
        *queries.stride()[:3], *keys.stride()[:3], *values.stride()[:3], *((0, 0) if bias is None else bias.stride()),
        *((0, 0) if query_blocks is None else query_blocks.stride()),
        *((0, 0) if key_blocks is None else key_blocks.stride()),
        rows, window, heads, each, length, chunk, dim, dim**-0.5 * math.log2(math.e),
        lines, _KEYS // 2 if large else _KEYS, size, num_warps=4, num_stages=2 if large else 3,
    )  # fmt: skip
    if parts == 1:
        return found[0]
    joined = torch.empty_like(queries, memory_format=torch.contiguous_format)
    _join[(rows * window * heads,)](
        found, sums, joined, rows * window * heads, parts, dim, triton.next_power_of_2(parts), size, num_warps=1
    )
    return joined


def _wanted(programs: int, length: int, device: torch.device) -> int:
    """Return between how many programs keys are split where there are `programs` already: as many as keep the device busy."""
    return min(-(-_WAVES * _multiprocessors(device) // programs), max(1, length // _FEWEST))


def _chunk(length: int, splits: int) -> int:
    """Return the keys of a program: whole reads."""
    return -(-length // (splits * _KEYS)) * _KEYS


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return _WHERE_INTERPRETED
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@triton.jit
def _attend(
    queries, keys, values, bias, padding, query_blocks, key_blocks, found, sums,
    query_row, query_step, query_head, key_row, key_step, key_head, value_row, value_step, value_head, bias_row, bias_step,
    asked_row, asked_step, block_row, block_step, rows, window, heads, each, length, chunk, dim, scale,
    LINES: tl.constexpr, KEYS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    # a line is a query head's query: those of a group stand in line, and read its keys together
    row, group = tl.program_id(1).to(tl.int64) // (heads // each), tl.program_id(1) % (heads // each)
    part, feature = tl.program_id(2).to(tl.int64), tl.arange(0, DIM)
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    step, head = line // each, group * each + line % each
    there, whole = (line < window * each)[:, None], (feature < dim)[None, :]
    place = queries + row * query_row + step[:, None].to(tl.int64) * query_step + head[:, None] * query_head
    query = tl.load(place + feature[None, :], there & whole, 0.0)
    first, end = part * chunk, tl.minimum((part + 1) * chunk, length)
    if padding is not None:
        first = tl.maximum(first, tl.load(padding + row))
    if query_blocks is not None:
        asked = tl.load(query_blocks + row * asked_row + step * asked_step, line < window * each, 0)
    top = tl.full((LINES,), float("-inf"), tl.float32)
    total = tl.zeros((LINES,), tl.float32)
    attended = tl.zeros((LINES, DIM), tl.float32)
    for begin in range(first, end, KEYS):
        number = begin + tl.arange(0, KEYS)
        read = number < end
        if bias is not None:
            read = tl.load(bias + row * bias_row + number * bias_step, read, float("-inf")) == 0.0
        at_keys = keys + row * key_row + group * key_head + number[None, :] * key_step + feature[:, None]
        key = tl.load(at_keys, read[None, :] & (feature < dim)[:, None], 0.0)
        score = tl.dot(query, key, input_precision="ieee") * scale  # to base 2
        score = tl.where(read[None, :], score, float("-inf"))
        if query_blocks is not None:
            behind = tl.load(key_blocks + row * block_row + number * block_step, read, 0)[None, :] > asked[:, None]
            score = tl.where(behind, float("-inf"), score)
        higher = tl.maximum(top, tl.max(score, 1))
        level = tl.where(higher == float("-inf"), 0.0, higher)  # where nothing has been read yet
        weight = tl.exp2(score - level[:, None])
        fade = tl.exp2(top - level)
        at_values = values + row * value_row + group * value_head + number[:, None] * value_step + feature[None, :]
        value = tl.load(at_values, read[:, None] & whole, 0.0)
        total = total * fade + tl.sum(weight, 1)
        attended = attended * fade[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        top = higher
    some = total != 0.0  # true of NaN, which must not be hidden
    total = tl.where(some, total, 1.0)
    place = ((part * rows + row) * window + step) * heads + head
    result = attended / total[:, None]
    tl.store(found + place[:, None] * dim + feature[None, :], result.to(found.dtype.element_ty), there & whole)
    tl.store(sums + place, tl.where(some, top + tl.log2(total), float("-inf")), line < window * each)


@triton.jit
def _join(found, sums, joined, lines, parts, dim, PARTS: tl.constexpr, DIM: tl.constexpr):
    line = tl.program_id(0).to(tl.int64)
    part, feature = tl.arange(0, PARTS), tl.arange(0, DIM)
    size = tl.load(sums + part * lines + line, part < parts, float("-inf"))
    weight = tl.exp2(size - tl.max(size, 0))
    place = found + (part[:, None] * lines + line) * dim + feature[None, :]
    each = tl.load(place, (part < parts)[:, None] & (feature < dim)[None, :], 0.0)
    result = tl.sum(each * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(joined + line * dim + feature, result.to(joined.dtype.element_ty), feature < dim)
