"""Batches of full canvases: chat prompt, answer, end of turn, end-of-text up to the length.

There is no padding: what a row has left is canvas, so the model learns to fill long tails too.
Shapes: B batch, L length, V vocabulary.
"""

from __future__ import annotations

import random
from typing import NamedTuple

import torch
from dialects import Dialect
from problems import training_problem
from tokenizers import Tokenizer
from torch import Tensor
from vocabulary import token_id

LENGTHS = (48, 64, 80, 112)
BLOCK_LENGTHS = (48, 64, 96, 128)
"""Lengths for models that decode in blocks: several block sizes divide each."""
TAIL_WEIGHT = 0.3
"""Weight in the loss of the end-of-text after the end of turn, which is learned at once."""


class Batch(NamedTuple):
    """Rows of one length: ids (B, L), where the answer starts and ends, each (B, 1)."""

    ids: Tensor
    start: Tensor
    end: Tensor


def make_chunk(
    tokenizer: Tokenizer,
    dialect: Dialect,
    rng: random.Random,
    progress: float,
    batch_tokens: int,
    shares: dict[str, float] | None = None,
    batches: int = 16,
    block_causal: bool = False,
) -> list[Batch]:
    """About `batches` batches of `batch_tokens` tokens; most rows barely fit, some have a tail.

    For a block-causal model a batch's answers start at about the same place, since its noised text begins where the first does.
    """
    lengths = BLOCK_LENGTHS if block_causal else LENGTHS
    rows: dict[int, list[tuple[list[int], int, int]]] = {length: [] for length in lengths}
    problems = [training_problem(rng, progress, shares) for _ in range(batches * batch_tokens // 60)]
    prompts = tokenizer.encode_batch([dialect.prompt(problem.prompt) for problem in problems])
    answers = tokenizer.encode_batch([problem.answer + dialect.end_of_turn for problem in problems])
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = prompt.ids + answer.ids
        fitting = [length for length in lengths if length >= len(ids)]
        draw = rng.random()
        length = fitting[-1] if draw < 0.08 else fitting[draw < 0.2 and len(fitting) > 1]
        rows[length].append((ids, len(prompt.ids), len(ids)))
    fill = token_id(tokenizer, dialect.end_of_text)
    made = []
    left: list[tuple[list[int], int, int]] = []
    for length in lengths:
        waiting, size = rows[length] + left, batch_tokens // length
        whole = len(waiting) // size * size
        taken, left = waiting[:whole], waiting[whole:]
        if block_causal:
            taken.sort(key=lambda row: row[1])
        made += [_batch(taken[i : i + size], length, fill) for i in range(0, whole, size)]
    rng.shuffle(made)
    return made


def _batch(rows: list[tuple[list[int], int, int]], length: int, fill: int) -> Batch:
    ids = torch.tensor([row + [fill] * (length - len(row)) for row, _, _ in rows])
    start = torch.tensor([[start] for _, start, _ in rows])
    return Batch(ids, start, torch.tensor([[end] for _, _, end in rows]))


def draw_masks(batch: Batch, vocab_size: int, generator: torch.Generator) -> Tensor:
    """Which positions are masked: (B, L) bool, never in the prompt, at ratios spread over (0, 1).

    Half of the rows mask each position by itself, as LLaDA does (arXiv 2502.09992, section 2.2).
    A quarter masks all copies of a token or none, so that a result cannot be copied from where
    it is repeated; a quarter masks as decoding in blocks does: nothing before a block,
    everything after it.
    """
    rows, length = batch.ids.shape
    spread = torch.randperm(rows, generator=generator) + torch.rand(rows, generator=generator)
    ratio = (spread / rows)[:, None]
    noise = torch.rand(rows, length, generator=generator)
    mode = torch.rand(rows, 1, generator=generator)
    tied = torch.rand(rows, vocab_size, generator=generator).gather(1, batch.ids)
    masked = torch.where(mode < 0.25, tied, noise) < ratio
    place = torch.arange(length) - batch.start
    block = torch.where(torch.rand(rows, 1, generator=generator) < 0.5, 16, 32)
    blocks = (batch.end - batch.start + block - 1) // block
    current = (torch.rand(rows, 1, generator=generator) * blocks).long()
    by_block = torch.where(place // block == current, masked, place // block > current)
    return torch.where(mode >= 0.75, by_block, masked) & (place >= 0)


def loss_weights(batch: Batch) -> Tensor:
    """(B, L): 1 in the answer and its end of turn, `TAIL_WEIGHT` after it."""
    return torch.where(torch.arange(batch.ids.shape[1]) < batch.end, 1.0, TAIL_WEIGHT)
