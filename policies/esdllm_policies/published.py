"""Presets of the procedures that model families are published with, by family; docs/methods.md says where ours differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from esdllm import Preset

__all__ = ["FAMILIES"]


class _Procedure(NamedTuple):
    """A public loop, and what it is called with in its repository's examples."""

    summary: str
    unmasking: Mapping[str, Any]
    gen_length: int
    block_length: int
    whole: bool = False
    """whether every step computes the whole canvas, of a block-causal model the whole block"""


_ONE: Mapping[str, Any] = {"name": "top-k"}

_PROCEDURES: Mapping[str, _Procedure] = {
    "a2d/mdlm": _Procedure(
        "Tiny-A2D's mdlm checkpoints: a linear schedule in each block (dllm's MDLMSampler)",
        {"name": "linear-schedule", "steps": 128},
        gen_length=128,
        block_length=32,
        whole=True,
    ),
    "a2d/bd3lm": _Procedure(
        "Tiny-A2D's bd3lm checkpoints: a linear schedule in each block (dllm's BD3LMSampler)",
        {"name": "linear-schedule", "steps": 128},
        gen_length=128,
        block_length=32,
    ),
    "fast-dllm-v2/static": _Procedure(
        "Fast-dLLM v2: one token per step, in parts of 8 of a block", _ONE, gen_length=256, block_length=8, whole=True
    ),
    "fast-dllm-v2/dynamic": _Procedure(
        "Fast-dLLM v2: all above 0.9 and the best of each part of 8 of a block",
        {"name": "threshold", "threshold": 0.9},
        gen_length=256,
        block_length=8,
        whole=True,
    ),
    "illada/static": _Procedure(
        "iLLaDA: one token per step in blocks of 32 (LLaDA's generate)",
        _ONE,
        gen_length=128,
        block_length=32,
        whole=True,
    ),
    "llada-moe/static": _Procedure(
        "LLaDA-MoE: one token per step in blocks of 32 (LLaDA's generate)",
        _ONE,
        gen_length=128,
        block_length=32,
        whole=True,
    ),
    "llada2/2.0": _Procedure(
        "LLaDA2.0: all above 0.95, and always the best",
        {"name": "threshold", "threshold": 0.95},
        gen_length=256,
        block_length=32,
    ),
    "llada2/2.1": _Procedure(
        "LLaDA2.1: as 2.0, and a decided token gives way to another that is surer than 0.9",
        {"name": "editing", "threshold": 0.95, "editing_threshold": 0.9, "editing_steps": 16},
        gen_length=256,
        block_length=32,
    ),
    "nemotron/static": _Procedure("Nemotron-Labs-Diffusion: one token per step", _ONE, gen_length=128, block_length=32),
    "nemotron/dynamic": _Procedure(
        "Nemotron-Labs-Diffusion: all above 0.9, and always the best",
        {"name": "threshold", "threshold": 0.9},
        gen_length=128,
        block_length=32,
    ),
    "open-dcoder/entropy": _Procedure(
        "Open-dCoder: Dream's schedule, lowest entropy first, the answer as one block",
        {"name": "time-schedule", "steps": 512, "order": "entropy"},
        gen_length=512,
        block_length=512,
        whole=True,
    ),
    "open-dcoder/p2": _Procedure(
        "Open-dCoder: the least confident are masks again at every step (P2), the answer as one block",
        {"name": "p2", "steps_per_block": 512},
        gen_length=512,
        block_length=512,
        whole=True,
    ),
    "rnd1/entropy": _Procedure(
        "RND1: an even schedule, lowest entropy first, the answer as one block",
        {"name": "lowest-entropy", "steps": 256, "temperature": 0.1},
        gen_length=256,
        block_length=256,
        whole=True,
    ),
    "sdar/static": _Procedure("SDAR: one token per step, the most confident", _ONE, gen_length=256, block_length=64),
    "sdar/dynamic": _Procedure(
        "SDAR: all above 0.85, and always the best",
        {"name": "threshold", "threshold": 0.85},
        gen_length=256,
        block_length=64,
    ),
    "sdar/sequential": _Procedure(
        "SDAR: one token per step, from left to right",
        {"name": "top-k", "order": "sequential"},
        gen_length=256,
        block_length=64,
    ),
    "stable-diffcoder/static": _Procedure(
        "Stable-DiffCoder: one token per step", _ONE, gen_length=512, block_length=64
    ),
}


def _preset(procedure: _Procedure) -> Preset:
    every = procedure.whole
    return Preset(
        procedure.summary,
        {
            "blocks": "fixed",
            "refresh": "every-step" if every else "dual-cache",
            "skip": "none",
            "importance": "hybrid",
            "sampler": "gumbel",
            "unmasking": procedure.unmasking,
            "cache": "dense",
            "attention": "auto",
            "gen_length": procedure.gen_length,
            "block_length": procedure.block_length,
            "delay_eos": False,
        },
    )


FAMILIES: Mapping[str, Preset] = {name: _preset(procedure) for name, procedure in _PROCEDURES.items()}
"""By the family and the procedure: `sdar/dynamic`."""
