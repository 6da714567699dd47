"""How recorded runs of block-causal families are read.

The public loops write a finished block's keys by a pass of its own; here that is the next block's first step, so steps are
compared and not passes. What stands behind an end of the answer is not compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from esdllm.testing.conformance.greedy import Greedy
from esdllm.testing.conformance.readers.reading import Reader, Recorded, behind
from esdllm.testing.conformance.result import NotRun

__all__ = ["bd3lm", "read_fast_dllm", "read_llada2", "read_nemotron", "read_stable_diffcoder", "sdar"]


def bd3lm(family: str) -> Reader:
    """Return the reader of dllm's BD3LMSampler; rows are padded on the left to whole blocks there."""

    def read(case: Recorded, told: str) -> Greedy | NotRun:
        given, prompts, eos = case["settings"], case["prompts"], case["eos_id"]
        if given.get("right_shift_logits"):
            return NotRun(
                "right_shift_logits in blocks: a block's first row tells two tokens there, its own and the next, and the "
                "last row none; here every row tells one, and no public checkpoint is decoded so"
            )
        if eos == case["pad_id"] and eos in chain(*prompts):
            return NotRun("the public sampler takes an end of text in a prompt for padding if both have one id")
        size, length = given["block_size"], given["max_new_tokens"]
        settings = {
            "gen_length": length,
            "block_length": size,
            "cfg_scale": given.get("cfg_scale", 0.0),
            "early_stop": False,
            "unmasking": {"name": "linear-schedule", "steps": given["steps"]},
        }
        begin = -(-max(map(len, prompts)) // size) * size
        expected = [behind(row[begin:], [], case["mask_id"], [eos]) for row in case["sequences"]]
        whole = all(len(row) == begin + length for row in case["sequences"])
        forwards = case["denoising_forwards"] if whole else None
        return Greedy(f"{family}{told},block_size={size}", "a2d/bd3lm", settings, prompts, expected, forwards=forwards)

    return read


def sdar(family: str) -> Reader:
    """Return the reader of SDAR's generate.py."""

    def read(case: Recorded, told: str) -> Greedy:
        given = case["settings"]
        steps, rule = given["denoising_steps"], given["remasking_strategy"].removeprefix("low_confidence_")
        unmasking: Mapping[str, Any] = {
            "static": {"name": "top-k", "steps_per_block": steps, "spread": "block"},
            "sequential": {"name": "top-k", "steps_per_block": steps, "spread": "block", "order": "sequential"},
            "dynamic": {
                "name": "threshold",
                "threshold": given.get("confidence_threshold"),
                "steps_per_block": steps,
            },
        }[rule]
        settings = {"gen_length": given["gen_length"], "early_stop": False, "unmasking": unmasking}
        expected = [behind(case["sequence"], case["prompt"], case["mask_id"])]
        told = f"{told},block_size={given['block_length']}"
        return Greedy(f"{family}{told}", f"sdar/{rule}", settings, [case["prompt"]], expected, _filled(case))

    return read


def _filled(case: Recorded) -> list[Sequence[int]]:
    """Return the positions that each step fills, of steps that are told with their block."""
    return [positions for _, positions in case["steps"]]


def read_llada2(case: Recorded, told: str) -> Greedy:
    """Read a run of LLaDA2.0's or 2.1's `generate`."""
    given, version, length = case["settings"], case["version"], case["settings"]["gen_length"]
    unmasking: dict[str, Any] = {"threshold": given["threshold"]}
    if version == "2.0":
        unmasking |= {"steps_per_block": min(given["steps"], length // given.get("minimal_topk", 1))}
    else:
        names = {
            "editing_threshold": "editing_threshold",
            "max_post_steps": "editing_steps",
            "num_to_transfer": "least",
        }
        unmasking |= {here: given[there] for there, here in names.items() if there in given}
    settings = {"gen_length": length, "early_stop": False, "unmasking": unmasking}
    expected = case["generated"]
    forwards = case["forwards"] if case["eos_id"] not in expected else None
    told = f"{told},block_size={given['block_length']}"
    return Greedy(f"llada2_moe{told}", f"llada2/{version}", settings, [case["prompt"]], [expected], forwards=forwards)


def read_fast_dllm(case: Recorded, told: str) -> Greedy:
    """Read a run of Fast-dLLM v2's `generate` or `batch_sample`, which end with the first token of one more block: left out here.

    A prompt's whole blocks have a pass of their own there, and none here where the next block holds more of the prompt; the
    last block's keys are written there.
    """
    given, prompt, size = case["settings"], case["prompt"], case["settings"]["block_size"]
    blocks = len(prompt) // size + given["max_new_tokens"] // size
    length = blocks * size - len(prompt)
    expected = behind(case["sequence"], prompt, case["mask_id"], [case["stop_id"]])[:length]
    settings = {
        "gen_length": length,
        "block_length": given["small_block_size"],
        "early_stop": False,
        "unmasking": {"threshold": given["threshold"]},
    }
    if given.get("use_block_cache"):
        settings["refresh"] = "sub-block-cache"
    merged = len(prompt) > size and len(prompt) % size > 0
    forwards = None if case["stop_id"] in expected else case["forwards"] - merged - 1
    told = f"{told},block_size={size}"
    return Greedy(f"fast-dllm-v2{told}", "fast-dllm-v2/dynamic", settings, [prompt], [expected], forwards=forwards)


def read_nemotron(case: Recorded, told: str) -> Greedy:
    """Read a run of Nemotron-Labs-Diffusion's `generate`.

    Where keys are written causally, the prompt's pass is not counted there, and the last block's, which is not made here, is.
    """
    given, prompt, size = case["settings"], case["prompt"], case["settings"]["block_length"]
    causal, threshold = given["causal_context"], given["threshold"]
    settings: dict[str, Any] = {"gen_length": given["max_new_tokens"], "early_stop": False}
    if threshold is not None:
        settings["unmasking"] = {"threshold": threshold}
    expected = behind(case["sequence"], prompt, case["mask_id"], [case["eos_id"]])
    whole = case["eos_id"] not in expected
    return Greedy(
        f"nemotron_labs_diffusion{told},block_size={size}{'' if causal else ',causal_context=false'}",
        "nemotron/static" if threshold is None else "nemotron/dynamic",
        settings,
        [prompt],
        [expected],
        steps=_filled(case) if whole and not causal else None,
        forwards=case["nfe"] if whole and causal else None,
    )


def read_stable_diffcoder(case: Recorded, told: str) -> Greedy:
    """Read a run of Stable-DiffCoder's `generate_block`."""
    given, prompt, size = case["settings"], case["prompt"], case["settings"]["block_length"]
    length, threshold = given["gen_length"], given["threshold"]
    steps = given["steps"] // (length // size)
    unmasking = {"name": "top-k", "steps_per_block": steps}
    if threshold is not None:
        unmasking = {"name": "threshold", "threshold": threshold}
    settings = {"gen_length": length, "early_stop": False, "unmasking": unmasking}
    expected = behind(case["sequence"], prompt, case["mask_id"], [case["eos_id"]])
    told = f"{told},block_size={size}"
    return Greedy(f"stable-diffcoder{told}", "stable-diffcoder/static", settings, [prompt], [expected], case["steps"])
