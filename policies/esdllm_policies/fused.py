"""What policies compute of large tensors, as Triton kernels that read them once: candidates, the published importance."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["hybrid_score", "most_probable"]

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


def hybrid_score(
    x: Tensor, last: Tensor, confidence: Tensor, committed: Tensor, alpha: float, bonus: float, raised: float
) -> Tensor:
    """Return (R, N) float32, alpha * confidence + (1 - alpha) * variation of x and last (R, N, F), with bonuses.

    Variation is mean|x - last| / (rms(last) + 1e-6), divided by a row's largest where that exceeds 1. `raised` is added where
    `committed` (R, N) bool, and `bonus` to a row's two highest of `confidence` (R, N) float32, of equal ones the first, but to
    none of 0. At alpha 0 confidence plays no part, at alpha 1 neither variation nor what was committed.
    """
    rows, window = confidence.shape
    change = confidence
    if alpha < 1:
        x, last = x.contiguous(), last.contiguous()
        change = torch.empty_like(confidence, memory_format=torch.contiguous_format)
        features = x.shape[-1]
        block = triton.next_power_of_2(features)
        _vary[(rows * window,)](x, last, change, features, block, num_warps=max(1, min(16, block // 512)))
    score = torch.empty_like(confidence, memory_format=torch.contiguous_format)
    _score[(rows,)](
        change, confidence, committed, score, confidence.stride(0), confidence.stride(1), committed.stride(0),
        committed.stride(1), window, alpha, bonus, raised, alpha > 0, alpha < 1, max(2, triton.next_power_of_2(window)),
    )  # fmt: skip
    return score


@triton.jit
def _vary(x, last, change, features, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, BLOCK)
    there = feature < features
    now = tl.load(x + place * features + feature, there, 0.0).to(tl.float32)
    before = tl.load(last + place * features + feature, there, 0.0).to(tl.float32)
    size = tl.sqrt(tl.sum(before * before, 0) / features)
    tl.store(change + place, tl.sum(tl.abs(now - before), 0) / features / (size + 1e-6))


@triton.jit
def _score(
    change, confidence, committed, score, confidence_row, confidence_step, committed_row, committed_step, window,
    alpha, bonus, raised, CONFIDENT: tl.constexpr, VARIES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, BLOCK)
    there = number < window
    sure = tl.load(confidence + row * confidence_row + number * confidence_step, there, float("-inf"))
    found = alpha * tl.where(there, sure, 0.0)
    if CONFIDENT:
        first = tl.argmax(sure, 0)
        second = tl.argmax(tl.where(number == first, float("-inf"), sure), 0)
        found += tl.where(((number == first) | (number == second)) & (sure > 0), bonus, 0.0)
    if VARIES:
        varied = tl.load(change + row * window + number, there, 0.0)
        found += (1 - alpha) * (varied / tl.maximum(tl.max(varied, 0), 1.0))
        late = tl.load(committed + row * committed_row + number * committed_step, there, 0)
        found += tl.where(late != 0, raised, 0.0)
    tl.store(score + row * window + number, found, there)


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
