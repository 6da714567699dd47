"""Single steps: what a rule commits, given logits and where it may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from esdllm.config import ComponentConfig
from esdllm.errors import EsdllmError
from esdllm.interfaces import EditingPolicy, RevokingPolicy, UnmaskingPolicy
from esdllm.testing.conformance.case import Ground
from esdllm.testing.conformance.result import NotRun
from esdllm.testing.conformance.rules.components import COMPONENTS, Recorded
from esdllm.views import UnmaskingView

__all__ = ["commits", "component", "given_view", "run_step"]

_MASK = 23  # where a file names no other


def run_step(ground: Ground, recorded: Recorded, tensors: Path, case: Recorded) -> str | None:
    """Return what differs from what a step commits; None if nothing does."""
    with safe_open(tensors, "pt") as file:
        given = {name: file.get_tensor(f"{case['id']}.{name}") for name in ("logits", "eligible", "ids")}
    mask = recorded.get("mask_token", _MASK)
    unsaid = given["logits"].argmax(-1) == mask
    eligible = given["eligible"].bool()
    if recorded["rule"] == "dinfer-threshold":  # by which what says the mask may not be committed
        eligible = eligible & ~unsaid
    if bool(unsaid[eligible].any()):
        return NotRun("the mask token would be a candidate, which it never is here")
    try:
        policy = component(ground, COMPONENTS[recorded["rule"]](case["settings"]))
    except EsdllmError as error:
        return f"{type(error).__name__}: {error}"
    view = given_view(given["logits"], eligible, given["ids"] == mask)
    if isinstance(policy, RevokingPolicy) and isinstance(policy, EditingPolicy):
        return _differing(_revised(view, policy, given["ids"], mask), case)
    return _differing(commits(view, policy.select(view)), case)


def _differing(found: list[list[list[int]]], case: Recorded) -> str | None:
    return None if found == case["commit"] else f"commits {found}, where {case['commit']} are expected"


def _revised(view: UnmaskingView, policy: Any, ids: Tensor, mask: int) -> list[list[list[int]]]:
    """Return what a step changes where it may take back and replace whatever is decided; what is taken back becomes a mask."""
    decided = ~view.undecided
    view = view._replace(held=ids, revocable=decided, editable=decided)
    back, tokens = policy.revoke(view), view.tokens
    changed = view._replace(eligible=view.eligible | decided, tokens=tokens.masked_fill(back, mask))
    return commits(changed, policy.select(view) | policy.edit(view) | back)


def component(ground: Ground, section: dict[str, Any]) -> UnmaskingPolicy:
    """Return the policy of a section of settings."""
    name = section.pop("name")
    policy: UnmaskingPolicy = ground.catalogue.build("unmasking", ComponentConfig(name, section))
    return policy


def given_view(logits: Tensor, eligible: Tensor, undecided: Tensor) -> UnmaskingView:
    """Return what a policy sees of given logits (B, L, V) at its first step, where all of a canvas is one block.

    Confidences are float64: a rule may take one of two that are equal in float32.
    """
    rows, length = eligible.shape
    columns, nothing = torch.arange(length).expand(rows, -1), torch.zeros(rows, dtype=torch.int64)
    confidence, tokens = logits.double().softmax(-1).max(-1)
    return UnmaskingView(
        raw=logits,
        tokens=tokens,
        confidence=confidence,
        eligible=eligible,
        positions=columns,
        previous_tokens=torch.full_like(columns, -1),
        previous_confidence=torch.zeros_like(confidence),
        quota=nothing,
        step=nothing,
        seeds=nothing,
        columns=columns,
        undecided=undecided,
        step_in_block=nothing,
        block=columns,
        block_number=nothing,
        block_length=torch.full_like(nothing, length),
    )


def commits(view: UnmaskingView, selected: Tensor) -> list[list[list[int]]]:
    """Return each row's positions that are selected (B, N), ascending, with the token of each."""
    return [
        [[at, int(tokens[at])] for at in row.nonzero()[:, 0].tolist()]
        for row, tokens in zip(selected & view.eligible, view.tokens, strict=True)
    ]
