"""How recorded runs of families are read in which every position sees every other."""

from __future__ import annotations

from typing import Any

from esdllm.testing.conformance.greedy import Greedy
from esdllm.testing.conformance.readers.reading import Reader, Recorded, behind

__all__ = ["mdlm", "read_illada", "read_open_dcoder", "read_rnd1"]

_ORDERS = {"maskgit_plus": "confidence", "entropy": "entropy", "topk_margin": "margin"}


def mdlm(family: str, preset: str) -> Reader:
    """Return the reader of dllm's MDLMSampler: the whole canvas at every step."""

    def read(case: Recorded, told: str) -> Greedy:
        given, prompts = case["settings"], case["prompts"]
        if given.get("right_shift_logits"):
            told = f"{told},right_shift_logits=true"
        length = given["max_new_tokens"]
        settings = {
            "gen_length": length,
            "block_length": given["block_size"],
            "cfg_scale": given.get("cfg_scale", 0.0),
            "early_stop": False,
            "unmasking": {"name": "linear-schedule", "steps": given["steps"]},
        }
        rows = zip(case["sequences"], prompts, strict=True)
        expected = [row[len(prompt) : len(prompt) + length] for row, prompt in rows]
        return Greedy(f"{family}{told}", preset, settings, prompts, expected, forwards=case["denoising_forwards"])

    return read


def read_illada(case: Recorded, told: str) -> Greedy:
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
    expected = [behind(case["sequence"], case["prompt"], case["mask_id"])]
    return Greedy(f"illada{told}", "illada/static", settings, [case["prompt"]], expected, forwards=case["nfe"])


def read_rnd1(case: Recorded, told: str) -> Greedy:
    """Read a run of RND1's `diffusion_sample`: the last slot of the canvas is reserved, and a suffix stands before it.

    It makes a step also where that fills nothing, so forwards are compared where every step fills something.
    """
    given, prompt, suffix = case["settings"], case["prompt"], case["suffix"] or []
    masks = len(case["sequence"]) - len(prompt) - len(suffix) - 1
    steps, gamma = given["num_steps"], given.get("eb_gamma")
    unmasking: dict[str, Any] = {"name": "lowest-entropy", "steps": steps, "temperature": given["temperature"]}
    if gamma is not None:
        unmasking = {"name": "entropy-bound", "gamma": gamma, "order": "confidence", "steps_per_block": steps}
    settings = {"gen_length": masks, "block_length": masks, "early_stop": False, "unmasking": unmasking}
    canvas = [*prompt, *[case["mask_id"]] * masks, *case["sequence"][len(prompt) + masks :]]
    expected = [case["sequence"][len(prompt) : len(prompt) + masks]]
    forwards = case["forwards"] if steps <= masks else None
    return Greedy(f"rnd1{told}", "rnd1/entropy", settings, [canvas], expected, forwards=forwards, infill=True)


def read_open_dcoder(case: Recorded, told: str) -> Greedy:
    """Read a run of Open-dLLM's `diffusion_generate`; its `p2` goes on where no mask is left, with more steps than positions."""
    given, steps = case["settings"], case["settings"]["steps"]
    preset, unmasking = "open-dcoder/p2", {"name": "p2", "steps_per_block": steps}
    if given["alg"] != "p2":
        preset = "open-dcoder/entropy"
        unmasking = {"name": "time-schedule", "steps": steps, "eps": given["eps"], "order": _ORDERS[given["alg"]]}
    length = given["max_new_tokens"]
    settings = {"gen_length": length, "block_length": length, "early_stop": False, "unmasking": unmasking}
    expected = [behind(case["sequence"], case["prompt"], case["mask_id"])]
    forwards = case["steps"] if given["alg"] != "p2" or steps <= length else None
    return Greedy(f"open-dcoder{told}", preset, settings, [case["prompt"]], expected, forwards=forwards)
