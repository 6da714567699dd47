"""How each family's recorded greedy runs are read: what the settings of the public procedures are called here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from esdllm.testing.conformance.greedy import Greedy
from esdllm.testing.conformance.result import NotRun

__all__ = ["READERS", "Reader"]

Recorded = Mapping[str, Any]
"""A case of cases.json."""

Reader = Callable[[Recorded, str], Greedy | NotRun]
"""Reads a case; the second argument is what a user tells beside the family's name, such as ",mask_token_id=158"."""


def _behind(sequence: Sequence[int], prompt: Sequence[int], mask: int) -> list[int]:
    """Return what follows a prompt, up to the masks that are left behind a stop."""
    found = list(sequence[len(prompt) :])
    while found and found[-1] == mask:
        found.pop()
    return found


def _mdlm(family: str) -> Reader:
    """Return the reader of dllm's MDLMSampler: the whole canvas at every step."""

    def read(case: Recorded, told: str) -> Greedy | NotRun:
        given, prompts = case["settings"], case["prompts"]
        if given.get("right_shift_logits"):
            return NotRun("right_shift_logits: no published checkpoint of this family predicts the next token")
        length = given["max_new_tokens"]
        settings = {
            "gen_length": length,
            "block_length": given["block_size"],
            "cfg_scale": given.get("cfg_scale", 0.0),
            "early_stop": False,
            "unmasking": {"name": "linear-schedule", "steps": given["steps"]},
        }
        expected = [
            row[len(prompt) : len(prompt) + length] for row, prompt in zip(case["sequences"], prompts, strict=True)
        ]
        return Greedy(f"{family}{told}", "vanilla", settings, prompts, expected, forwards=case["denoising_forwards"])

    return read


def _illada(case: Recorded, told: str) -> Greedy:
    """Read a run of LLaDA's `generate`."""
    given = case["settings"]
    threshold = given.get("threshold")
    settings = {
        "gen_length": given["gen_length"],
        "block_length": given["block_length"],
        "early_stop": False,
        "unmasking": {"name": "top-k", "steps": given["steps"]}
        if threshold is None
        else {"name": "threshold", "threshold": threshold},
    }
    expected = [_behind(case["sequence"], case["prompt"], case["mask_id"])]
    return Greedy(f"illada{told}", "vanilla", settings, [case["prompt"]], expected, forwards=case["nfe"])


def _unread(case: Recorded, told: str) -> NotRun:
    return NotRun("no reader yet of this family's runs")


READERS: Mapping[str, Mapping[str, Reader]] = {
    "a2d-qwen3": {"mdlm": _mdlm("a2d-qwen3-mdlm")},
    "a2d-qwen2": {"mdlm": _mdlm("a2d-qwen2-mdlm")},
    "a2d-llama": {"mdlm": _mdlm("a2d-llama-mdlm")},
    "llada": {"mdlm": _mdlm("llada-moe")},
    "illada": {"": _illada},
}
"""By the config's `model_type`, and the procedure that a case names: its `sampler`, `function` or `version`."""
