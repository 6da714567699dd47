"""Rows laid out so that the blocks of a block-causal model begin at the columns that the block's size divides."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from esdllm.plan import BlockCausal
from esdllm.runtime.prompts import Prepared
from esdllm.views import ModelSpec

__all__ = ["aligned"]


class _Unplaced(NamedTuple):
    """One row before it is placed."""

    tokens: Tensor
    """(n,) int64, without padding, up to the end of what is decoded"""
    before: int
    """columns of padding between a block's begin and the row's first token"""
    answer: range
    """its answer, counted from its first token"""

    def blocks(self, size: int) -> int:
        """Return how many blocks it takes."""
        return -(-(self.before + len(self.tokens)) // size)


def aligned(prepared: Prepared, attention: BlockCausal, spec: ModelSpec, infill: bool) -> Prepared:
    """Return a canvas whose rows end in the same block, so that their blocks are decoded together.

    A row is padded on the left, and on the right where its last block is shorter than another's. Where the family fills its last
    block and nothing is given behind the prompt, masks are put up to the block's end; they are no part of the answer.
    """
    rows = [_row(prepared, number, attention, spec, infill) for number in range(len(prepared.tokens))]
    most = max(row.blocks(attention.size) for row in rows)
    starts = [(most - row.blocks(attention.size)) * attention.size + row.before for row in rows]
    length = max(start + len(row.tokens) for start, row in zip(starts, rows, strict=True))
    tokens = torch.full((len(rows), length), spec.eos_id, dtype=torch.int64)
    present = torch.zeros_like(tokens, dtype=torch.bool)
    for number, (start, row) in enumerate(zip(starts, rows, strict=True)):
        tokens[number, start : start + len(row.tokens)] = row.tokens
        present[number, start : start + len(row.tokens)] = True
    answers = [(start + row.answer.start, start + row.answer.stop) for start, row in zip(starts, rows, strict=True)]
    return Prepared(tokens, present, tuple(start for start, _ in answers), tuple(stop for _, stop in answers))


def _row(prepared: Prepared, number: int, attention: BlockCausal, spec: ModelSpec, infill: bool) -> _Unplaced:
    present = prepared.attention_mask[number]
    tokens = prepared.tokens[number, present]
    answer = range(prepared.starts[number] - int(present.long().argmax()), len(tokens))
    masks = (tokens == spec.mask_id).nonzero()
    prompt = int(masks[0]) if len(masks) else len(tokens)
    before = attention.before(prompt)
    if not infill:
        tokens = torch.cat([tokens, tokens.new_full((attention.behind(before + len(tokens)),), spec.mask_id)])
    return _Unplaced(tokens, before, answer)
