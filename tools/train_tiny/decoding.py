"""Check-ups during training: plain low-confidence decoding, one token per step, block by block.

The package decodes far better than this; it is here so that a run can be checked on its own.
Shapes: B batch, L length.
"""

from __future__ import annotations

import torch
from blocks import block_causal
from dialects import Dialect
from model import TinyModel
from problems import TASKS, held_out_problems
from tokenizers import Tokenizer
from torch import Tensor
from vocabulary import token_id


@torch.no_grad()
def decode_batch(
    model: TinyModel, prompts: Tensor, mask_id: int, gen_length: int, block_length: int
) -> list[list[int]]:
    """The ids decoded after prompts (B, L) of one length.

    At each step the most confident masked position of the block is decoded. A block-causal model's blocks are counted
    from the prompt's first token, so that its canvas ends with a whole block, and it computes nothing behind the block.
    """
    rows, start = prompts.shape
    grid = start // block_length * block_length if model.size.block_causal else start
    end = start + gen_length if not model.size.block_causal else -(-(start + gen_length) // block_length) * block_length
    canvas = torch.full((rows, end), mask_id)
    canvas[:, :start] = prompts
    for first in range(grid, end, block_length):
        block = slice(first, first + block_length)
        for _ in range(max(first, start), block.stop):
            logits = _block_logits(model, canvas, block)
            logits[..., mask_id] = -torch.inf
            confidence, tokens = logits.softmax(-1).max(-1)
            confidence[canvas[:, block] != mask_id] = -1
            best = confidence.argmax(-1, keepdim=True)
            canvas[:, block].scatter_(1, best, tokens.gather(1, best))
    return canvas[:, start : start + gen_length].tolist()


def _block_logits(model: TinyModel, canvas: Tensor, block: slice) -> Tensor:
    """The logits of the tokens of a block, (B, block, V) in float32."""
    if model.size.block_causal:
        unseen = block_causal(block.stop, block.stop - block.start)
        return model.head(model.features(canvas[:, : block.stop], unseen=unseen)[:, block]).float()
    seen = slice(block.start - model.size.shift, block.stop - model.size.shift)
    return model.head(model.features(canvas)[:, seen]).float()


def read(tokenizer: Tokenizer, dialect: Dialect, ids: list[int]) -> str:
    """The text up to the end of the turn."""
    ends = [token_id(tokenizer, dialect.end_of_turn), token_id(tokenizer, dialect.end_of_text)]
    stop = next((place for place, number in enumerate(ids) if number in ends), len(ids))
    return str(tokenizer.decode(ids[:stop], skip_special_tokens=False))


def check_up(
    model: TinyModel,
    tokenizer: Tokenizer,
    dialect: Dialect,
    count: int = 50,
    gen_length: int = 64,
    block_length: int = 32,
) -> tuple[dict[str, float], list[tuple[str, str, str]]]:
    """Exact match of each task on `count` held-out problems, and what was answered wrongly."""
    mask_id = token_id(tokenizer, dialect.mask)
    scores, wrong = {}, []
    for task in TASKS:
        right = 0
        by_length: dict[int, list[tuple[list[int], str, str]]] = {}
        for problem in held_out_problems(task, count):
            ids = tokenizer.encode(dialect.prompt(problem.prompt)).ids
            by_length.setdefault(len(ids), []).append((ids, problem.prompt, problem.answer))
        for group in by_length.values():
            prompts = torch.tensor([ids for ids, _, _ in group])
            decoded = decode_batch(model, prompts, mask_id, gen_length, block_length)
            for (_, prompt, answer), out in zip(group, decoded, strict=True):
                text = read(tokenizer, dialect, out)
                right += text == answer
                if text != answer:
                    wrong.append((prompt, answer, text))
        scores[task] = right / count
    return scores, wrong
