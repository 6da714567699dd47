"""What a sampler asks of logits, as Triton kernels that read them once: the most probable token, and its probability."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["most_probable"]

_SLICE = 8192  # logits that one program reads


def most_probable(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return of logits (..., V) the largest's id, (...) int64, of equal ones the first, and its probability, (...) float32.

    The vocabulary is cut into slices that are read side by side; their largest ones and their sums of exponentials, taken in
    float32 from each slice's own largest, are then put together. Among logits that hold NaN the probability is NaN.
    """
    lines, vocab = logits[..., 0].numel(), logits.shape[-1]
    logits = logits if logits.is_contiguous() else logits.contiguous()
    slices = triton.cdiv(vocab, _SLICE)
    tops, sums = logits.new_empty((2, lines, slices), dtype=torch.float32)
    ids = torch.empty((lines, slices), dtype=torch.int32, device=logits.device)
    _slice[(lines, slices)](logits, tops, sums, ids, vocab, slices, _SLICE, num_warps=8)
    tokens = torch.empty(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    probability = torch.empty(logits.shape[:-1], dtype=torch.float32, device=logits.device)
    _join[(lines,)](tops, sums, ids, tokens, probability, slices, triton.next_power_of_2(slices), num_warps=1)
    return tokens, probability


@triton.jit
def _slice(logits, tops, sums, ids, vocab, slices, SLICE: tl.constexpr):
    line, number = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = number * SLICE + tl.arange(0, SLICE)
    x = tl.load(logits + line * vocab + column, column < vocab, float("-inf")).to(tl.float32)
    top, where = tl.max(x, 0, return_indices=True)
    level = tl.where(top == float("-inf"), 0.0, top)  # a slice may hold nothing that can be drawn
    place = line * slices + number
    tl.store(tops + place, top)
    tl.store(sums + place, tl.sum(tl.exp(x - level), 0))
    tl.store(ids + place, tl.minimum(number * SLICE + where, vocab - 1))  # a token, even if all are NaN


@triton.jit
def _join(tops, sums, ids, tokens, probability, slices, SLICES: tl.constexpr):
    line = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, SLICES)
    there = number < slices
    place = line * slices + number
    top = tl.load(tops + place, there, float("-inf"))
    best, where = tl.max(top, 0, return_indices=True)
    total = tl.sum(tl.load(sums + place, there, 0.0) * tl.exp(top - best), 0)
    tl.store(tokens + line, tl.load(ids + line * slices + tl.minimum(where, slices - 1)).to(tl.int64))
    tl.store(probability + line, 1 / total)
