"""Plain passes over rows with masks: what the model says of each masked column, all rows in one forward."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from esdllm.errors import ContextError, InputError
from esdllm.runtime.engine import Engine
from esdllm.runtime.plain import layers

__all__ = ["check_sees_all", "masked_log_probs"]


def check_sees_all(engine: Engine, what: str) -> None:
    """Return if every position of the engine's model sees all others.

    Raises:
        InputError: it is block-causal; says that `what` is for the others.
    """
    spec = engine.model.spec
    if spec.attention is not None:
        raise InputError(
            f"{spec.family} is block-causal (blocks of {spec.attention.size}): {what} is for models whose positions see the "
            "whole text"
        )


@torch.inference_mode()
def masked_log_probs(engine: Engine, rows: Sequence[Sequence[int]], columns: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return of every row the log-probabilities (M, V) float32 at its M `columns`, all rows in one forward.

    Rows of different lengths are padded on the left, and padding changes nothing. The mask itself is no candidate, as in
    decoding. No cache, nothing skipped; the engine's attention backend attends.

    Raises:
        ContextError: a row is longer than the model's context.
        InputError: a row begins with a column that is asked for, and the model has a logit shift.
    """
    model, spec = engine.model.adapter, engine.model.spec
    longest = max(map(len, rows))
    if longest > spec.context:
        raise ContextError(f"a text of {longest} tokens exceeds the model's context of {spec.context}; shorten it")
    if min(min(row) for row in columns) < spec.logit_shift:
        raise InputError(
            f"a model with logit shift {spec.logit_shift} says nothing of a text's first token; put one before"
        )
    padding = torch.tensor([longest - len(row) for row in rows], device=model.device)
    tokens = torch.tensor([[spec.eos_id] * (longest - len(row)) + list(row) for row in rows], device=model.device)
    places = torch.arange(longest, device=model.device) - padding.unsqueeze(1)
    bias = None
    if any(len(row) < longest for row in rows):
        bias = torch.zeros(tokens.shape, dtype=model.dtype, device=model.device).masked_fill(places < 0, float("-inf"))
    with engine.turn:
        passed = layers(model, model.embed(tokens), places.clamp(min=0), bias, engine.components.attention.attend)
        hidden, _ = deque(passed, maxlen=1).pop()  # one layer at a time is held
        found = []
        for number, wanted in enumerate(columns):
            at = torch.tensor(wanted, device=model.device) + padding[number] - spec.logit_shift
            logits = model.logits(hidden[number : number + 1, at]).float()[0]
            logits[:, spec.mask_id] = float("-inf")
            found.append(logits.log_softmax(-1))
    return found
