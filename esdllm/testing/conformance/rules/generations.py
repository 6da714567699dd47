"""Whole generations of a rule, as they were recorded and as the public API makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esdllm.errors import EsdllmError
from esdllm.runtime.engine import Engine
from esdllm.testing.conformance.case import Ground
from esdllm.testing.conformance.modes import preset_of
from esdllm.testing.conformance.result import NotRun, first_difference
from esdllm.testing.conformance.rules.components import BLOCKS, Recorded, decoding
from esdllm.views import ModelSpec, StepRecord

__all__ = ["run_generation"]

_DREAM = "frechet-profile-dream"
"""by Fast-dLLM's loop for Dream: a block's first step decides its first token alone, and the others compute its own tokens"""


def run_generation(ground: Ground, checkpoints: Path, rule: str, case: Recorded) -> str | None:
    """Return what differs between a recorded generation and the same one here; None if nothing does."""
    settings = case["settings"]
    if (why := _elsewhere(case)) is not None:
        return NotRun(why)
    prompts, mask = torch.tensor(case["input_ids"]), case.get("attention_mask")
    expected, seen = torch.tensor(case["sequences"]), _Steps(len(case["sequences"][0]))
    try:
        chosen = decoding(rule, settings)
        if case["by"] == _DREAM:
            chosen["refresh"] = "sub-block-cache"
            chosen["unmasking"]["first_alone"] = True
        config = ground.configured(preset_of(settings.get("mode", "vanilla")), chosen)
        engine = Engine.build(ground.load(checkpoints / case["model"]), config, ground.catalogue)
        attention_mask = None if mask is None else torch.tensor(mask)
        result = engine.generate(prompts, attention_mask=attention_mask, observers=[seen])
    except EsdllmError as error:
        return f"{type(error).__name__}: {error}"
    if result.tokens.tolist() != expected.tolist():
        return first_difference(result.tokens, expected)
    steps = case.get("steps")
    if steps is not None and rule == "dc-leap":
        steps = [[_run(row) for row in step] for step in steps]
    return _differing_step(seen.steps, steps, result.forwards, case["forwards"])


def _run(columns: Sequence[int]) -> list[int]:
    """Return the neighbours that columns begin with: those behind are drafts, which the record tells as if they were decided."""
    return [column for place, column in enumerate(columns) if column == columns[0] + place]


def _elsewhere(case: Recorded) -> str | None:
    """Return why a recorded loop is none of this engine's; None if it is."""
    if case["by"] == _DREAM and case["settings"]["mode"] == "prefix_cache":
        return (
            "Fast-dLLM's loop for Dream computes from a block's first own position to the canvas' end, a window that begins one "
            "to the left here, at what decides that position"
        )
    if case["settings"].get("extra_mask"):
        return "the recorded loop's canvas goes on for one mask behind the answer"
    if case["by"] in BLOCKS and case["settings"]["mode"] != "vanilla":
        return (
            "a cached step computes the block, as long as it has become, in the recorded loop; here it computes the longest "
            "that a block can become, for a plan's shapes are known before"
        )
    return None


def _differing_step(
    found: Sequence[Any], expected: Sequence[Any] | None, forwards: int, expected_forwards: int
) -> str | None:
    if expected is not None and list(found) != list(expected):
        at = next((at for at, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found))
        return f"equal tokens, but step {at} of {len(found)} is another, where there are {len(expected)}"
    if forwards != expected_forwards:
        return f"equal tokens, but {forwards} forwards where {expected_forwards} are expected"
    return None


class _Steps:
    """Notes which columns of each row every step turns from masks into tokens, of a canvas of `length` behind its padding."""

    def __init__(self, length: int) -> None:
        self._length = length
        self.steps: list[list[list[int]]] = []

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Nothing is known before the first step."""

    def step(self, record: StepRecord) -> None:
        """Note each row's columns."""
        kept = record.committed if record.revoked is None else record.committed & ~record.revoked
        room = record.tokens.shape[1] - self._length
        self.steps.append([row[room:].nonzero()[:, 0].tolist() for row in kept])

    def end(self) -> None:
        """Nothing is left to do."""
