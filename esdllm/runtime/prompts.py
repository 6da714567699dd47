"""From what a caller passes to a padded canvas: text, conversations, token ids, tensors, canvases with masks anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor

from esdllm.checkpoints.loading import Model
from esdllm.checkpoints.text import check_unicode
from esdllm.errors import ContextError, InputError, brief
from esdllm.views import Message, ModelSpec

__all__ = ["Prepared", "Prompts", "prepare", "seed_list"]

Prompts = str | Sequence[str] | Sequence[Sequence[int]] | Sequence[Sequence[Message]] | Tensor


class Prepared(NamedTuple):
    """A canvas on the host."""

    tokens: Tensor
    """(B, L) int64, with masks"""
    attention_mask: Tensor
    """(B, L) bool, False at left padding"""
    starts: tuple[int, ...]
    """first column of each row's answer; for infilling, of its first real token"""
    stops: tuple[int, ...] = ()
    """one beyond the last column of each row's answer; empty if all answers go to the canvas' end"""

    def padded(self, columns: int, spec: ModelSpec) -> Prepared:
        """Return the canvas with so many columns of padding more on the left."""
        return Prepared(
            F.pad(self.tokens, (columns, 0), value=spec.eos_id),
            F.pad(self.attention_mask, (columns, 0), value=False),
            tuple(start + columns for start in self.starts),
            tuple(stop + columns for stop in self.stops),
        )


def prepare(
    model: Model, prompts: Prompts, attention_mask: Tensor | None, gen_length: int, infill: bool, chat: bool | None
) -> Prepared:
    """Return the canvas of prompts (each followed by `gen_length` masks) or, when infilling, of canvases as they are.

    `chat` says whether text goes through the chat template: None where the checkpoint brings one.

    Raises:
        InputError: an empty prompt, a mask token where infilling was not asked for, a canvas over the model's context, a
            token outside the vocabulary, a wrong shape or dtype, an attention mask with holes.
    """
    spec, chat = model.spec, model.chats(chat)
    if isinstance(prompts, Tensor):
        tokens, mask = _check_tensor(prompts, attention_mask)
    else:
        if attention_mask is not None:
            raise InputError("an attention mask goes with a tensor of token ids; other prompts are padded here")
        tokens, mask = _pad([_ids(model, prompt, chat) for prompt in _listed(prompts)], spec)
    _check_tokens(tokens, mask, spec, infill)
    tokens = tokens.masked_fill(~mask, spec.eos_id)  # whatever stands in padding, it is neither a mask nor read
    columns = 0 if infill else gen_length
    starts = mask.long().argmax(1).tolist() if infill else [tokens.shape[1]] * tokens.shape[0]
    if tokens.shape[1] + columns > spec.context:
        raise ContextError(
            f"{tokens.shape[1]} prompt tokens and {columns} to generate exceed the model's context of {spec.context}; shorten "
            "the prompt or gen_length"
        )
    tokens = torch.cat([tokens, tokens.new_full((tokens.shape[0], columns), spec.mask_id)], dim=1)
    return Prepared(tokens, torch.cat([mask, mask.new_ones((mask.shape[0], columns))], dim=1), tuple(starts))


def seed_list(seed: Any, rows: int) -> list[Any]:
    """Return one seed's number for all rows, or each row's own: of a list, an array, a tensor, a table's column."""
    seed = seed.tolist() if hasattr(seed, "tolist") else seed
    listed = list(seed) if isinstance(seed, Iterable) else [seed] * rows
    return [int(number) if hasattr(number, "__index__") and type(number) is not bool else number for number in listed]


def _listed(prompts: str | Sequence[str] | Sequence[Sequence[int]] | Sequence[Sequence[Message]]) -> Sequence[object]:
    listed = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(listed, Sequence):
        raise InputError(f"prompts are text, a list of prompts, or a tensor, not {brief(prompts)}")
    if not listed:
        raise InputError("there is no prompt; give at least one")
    return listed


def _ids(model: Model, prompt: object, chat: bool) -> list[int]:
    """Return one prompt's tokens."""
    if isinstance(prompt, str) or _is_conversation(prompt):
        if model.codec is None:
            raise InputError(f"text needs a tokenizer: {model.codec_error or 'this model has none'}")
        if not isinstance(prompt, str):
            return model.codec.encode_chat(prompt)
        check_unicode("the prompt", prompt)
        if not chat:
            return model.codec.encode(prompt)
        return model.codec.encode_chat([{"role": "user", "content": prompt}]) if prompt.strip() else []
    if not isinstance(prompt, Sequence) or any(type(token) is not int for token in prompt):
        raise InputError(f"a prompt is text, a conversation or a list of token ids, not {brief(prompt)}")
    return list(prompt)


def _is_conversation(prompt: object) -> TypeGuard[Sequence[Message]]:
    if not isinstance(prompt, Sequence) or not prompt or not isinstance(prompt[0], dict):
        return False
    for turn in prompt:
        if not isinstance(turn, dict) or any(not isinstance(turn.get(key), str) for key in ("role", "content")):
            raise InputError(f"a turn of a conversation is {{'role': text, 'content': text}}, not {brief(turn)}")
        check_unicode("the prompt", turn["content"])
        check_unicode(f"the role {brief(turn['role'])}", turn["role"])
    return True


def _pad(rows: list[list[int]], spec: ModelSpec) -> tuple[Tensor, Tensor]:
    """Return rows padded on the left with end-of-text, and their mask."""
    for number, row in enumerate(rows):
        if not row:
            raise InputError(f"prompt {number} is empty; give it at least one token")
        _check_range(min(row), max(row), spec)
    length = max(len(row) for row in rows)
    tokens = torch.tensor([[spec.eos_id] * (length - len(row)) + row for row in rows], dtype=torch.int64)
    return tokens, torch.tensor([[False] * (length - len(row)) + [True] * len(row) for row in rows])


def _check_tensor(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    if tokens.dim() != 2 or tokens.dtype != torch.int64:
        raise InputError(f"prompts are (B, P) int64, not {tuple(tokens.shape)} {tokens.dtype}")
    if not tokens.numel():
        raise InputError(f"prompts of shape {tuple(tokens.shape)} are empty; give at least one token")
    tokens = tokens.cpu()
    if mask is None:
        return tokens, torch.ones_like(tokens, dtype=torch.bool)
    if not isinstance(mask, Tensor):
        raise InputError(f"the attention mask is a {type(mask).__name__}; it must be a tensor like the prompts")
    if mask.shape != tokens.shape or mask.dtype not in (torch.bool, torch.int64, torch.int32):
        raise InputError(
            f"the attention mask is {tuple(mask.shape)} {mask.dtype}; it must be {tuple(tokens.shape)}, bool or integer"
        )
    mask = mask.cpu().bool()
    for number, row in enumerate(mask):
        if not row[-1] or (row.long().diff() < 0).any():
            raise InputError(
                f"the attention mask of row {number} has holes or ends with padding; only padding on the left is possible"
            )
    return tokens, mask


def _check_range(low: int, high: int, spec: ModelSpec) -> None:
    if low < 0 or high >= spec.vocab:
        raise InputError(f"the token {low if low < 0 else high} is outside the vocabulary of {spec.vocab}")


def _check_tokens(tokens: Tensor, mask: Tensor, spec: ModelSpec, infill: bool) -> None:
    real = tokens[mask]
    _check_range(int(real.min()), int(real.max()), spec)
    masks = (tokens == spec.mask_id) & mask
    if masks.any() and not infill:
        row = int(masks.any(1).nonzero()[0])
        raise InputError(f"prompt {row} holds the mask token {spec.mask_id}; pass infill=True to have it filled in")
    if infill and not masks.any():
        raise InputError(f"there is nothing to fill in: no canvas holds the mask token {spec.mask_id}")
    first = mask.long().argmax(1, keepdim=True)
    leads = spec.logit_shift or (spec.attention is not None and spec.attention.leads)
    if infill and leads and masks.gather(1, first).any():
        raise InputError(
            f"a canvas begins with a mask, which a model with logit shift {spec.logit_shift} cannot fill in; put a token before"
            if spec.logit_shift
            else "a canvas begins with a mask, and the model decides a block's first token from what is before; put a token "
            "before"
        )
