"""Block-causal training: one forward learns every block of the answers, each against what was clean before it.

As in block diffusion (BD3-LM, arXiv 2503.09573) a row is computed as its clean text followed by its noised text, at the
same positions. A clean position sees the clean blocks up to its own; a noised one sees its own noised block and the clean
blocks before it, which is what decoding in blocks shows it. The noised text begins where the answers do.
Shapes: B batch, L length, N noised length, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from batches import Batch
from torch import Tensor

SIZES = (4, 8, 16, 32, 64)
"""The block sizes that one run is trained on; a batch has one of those that divide its length."""


class Noised(NamedTuple):
    """Clean and noised text in line: what a training step of a block-causal model computes."""

    ids: Tensor
    """(B, L + N), the clean ids, then the noised ones"""
    wanted: Tensor
    """(B, L + N) bool, the masked positions of the noised text"""
    positions: Tensor
    """(L + N,), each row's places in the text"""
    unseen: Tensor
    """(L + N, L + N) bool, which keys a query does not see"""


def block_causal(length: int, size: int) -> Tensor:
    """(L, L) bool: the keys that a query does not see, those of later blocks."""
    block = torch.arange(length) // size
    return block[:, None] < block


def draw_size(length: int, generator: torch.Generator) -> int:
    """One of the block sizes that divide the length."""
    sizes = [size for size in SIZES if length % size == 0]
    return sizes[int(torch.randint(len(sizes), (), generator=generator))]


def draw_block_masks(batch: Batch, size: int, vocab_size: int, generator: torch.Generator) -> Tensor:
    """Which positions are masked: (B, L) bool, never in the prompt, each block at a ratio of its own, spread over (0, 1).

    Three quarters of the rows mask each position by itself, a quarter all copies of a token or none, as `draw_masks` does.
    """
    rows, length = batch.ids.shape
    blocks = length // size
    spread = torch.randperm(rows * blocks, generator=generator) + torch.rand(rows * blocks, generator=generator)
    ratio = (spread / (rows * blocks)).view(rows, blocks).repeat_interleave(size, 1)
    noise = torch.rand(rows, length, generator=generator)
    tied = torch.rand(rows, vocab_size, generator=generator).gather(1, batch.ids)
    alone = torch.rand(rows, 1, generator=generator) < 0.75
    return (torch.where(alone, noise, tied) < ratio) & (torch.arange(length) >= batch.start)


def noised(batch: Batch, masked: Tensor, size: int, mask_id: int) -> Noised:
    """Put a batch's noised blocks, from the first that holds a part of an answer, in line behind its clean text."""
    length = batch.ids.shape[1]
    first = int(batch.start.min()) // max(size, 16) * max(size, 16)  # few different lengths: each is compiled
    places = torch.arange(length)
    positions = torch.cat((places, places[first:]))
    block, clean = positions // size, torch.arange(len(positions)) < length
    same = (block[:, None] == block) & (clean[:, None] == clean)
    seen = same | ((block[:, None] > block) & clean)
    ids = torch.cat((batch.ids, batch.ids.masked_fill(masked, mask_id)[:, first:]), 1)
    wanted = torch.cat((torch.zeros_like(masked), masked[:, first:]), 1)
    return Noised(ids, wanted, positions, ~seen)
