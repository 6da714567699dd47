"""Blocks step by step: what a rule that remembers commits at each step, given the logits of the block alone."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from esdllm.errors import EsdllmError
from esdllm.interfaces import RememberingPolicy
from esdllm.testing.conformance.case import Ground
from esdllm.testing.conformance.result import NotRun
from esdllm.testing.conformance.rules.components import COMPONENTS, Recorded
from esdllm.testing.conformance.rules.steps import commits, component, given_view

__all__ = ["run_block"]


def run_block(ground: Ground, recorded: Recorded, tensors: Path, case: Recorded) -> str | None:
    """Return what differs from what the steps of a block commit; None if nothing does."""
    try:
        policy = component(ground, COMPONENTS[recorded["rule"]](case["settings"]))
    except EsdllmError as error:
        return f"{type(error).__name__}: {error}"
    if not isinstance(policy, RememberingPolicy):
        return NotRun("the rule is recorded with what it remembers, and the component remembers nothing")
    memory = torch.zeros(*torch.tensor(case["steps"][0]["ids"]).shape, policy.memory)
    with safe_open(tensors, "pt") as file:
        for number, step in enumerate(case["steps"]):
            logits = file.get_tensor(f"{case['id']}.logits.{number}")
            ids = torch.tensor(step["ids"])
            undecided = ids == recorded["mask_token"]
            late = _late_ends(logits, undecided, torch.tensor(step["has_eos"]), recorded["eos_token"])
            view = given_view(logits, undecided & ~late, undecided)
            view = view._replace(step_in_block=torch.full_like(view.step, number), memory=memory)
            memory = policy.remember(view)
            found = commits(view, policy.select(view._replace(memory=memory)))
            if found != step["commit"]:
                return f"step {number} commits {found}, where {step['commit']} are expected"
    return None


def _late_ends(logits: Tensor, undecided: Tensor, has_eos: Tensor, eos: int) -> Tensor:
    """Return (B, N) bool: a row's first end of text behind a mask, which `delay_eos` does not let be committed."""
    behind = torch.nn.functional.pad(undecided[:, :-1], (1, 0))
    return (logits.argmax(-1) == eos) & behind & ~has_eos.bool().view(-1, 1)
