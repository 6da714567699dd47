"""Presets: the four decoding modes, each also with parallel decoding; published settings by model and task, or by family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esdllm import Preset
from esdllm_policies.published import FAMILIES

__all__ = ["PRESETS"]

_COMMON: Mapping[str, Any] = {
    "blocks": "fixed",
    "skip": "none",
    "importance": "hybrid",
    "sampler": "gumbel",
    "unmasking": "top-k",
    "cache": "dense",
    "attention": "auto",
}

_MODES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "vanilla": ("every position at every step; no cache", {"refresh": "every-step", "cache": "none"}),
    "prefix-cache": ("keys and values left of the block cached (Fast-dLLM)", {"refresh": "prefix-cache"}),
    "dual-cache": ("keys and values on both sides of the block cached (Fast-dLLM)", {"refresh": "dual-cache"}),
    "es-dllm": ("early skipping at the published keep ratios (ES-dLLM)", {"refresh": "periodic", "skip": "by-depth"}),
}

_PARALLEL: Mapping[str, Any] = {"unmasking": {"name": "threshold", "threshold": 0.9}}

_REFRESH: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "llada-instruct": {"gsm8k": (64, 16), "math": (256, 8), "bbh": (64, 4), "humaneval": (64, 4), "mbpp": (64, 4)},
    "llada-base": {"gsm8k": (64, 4), "math": (256, 4), "bbh": (64, 4), "humaneval": (128, 4), "mbpp": (256, 2)},
    "dream-instruct": {"gsm8k": (64, 8), "math": (256, 4), "bbh": (64, 8), "humaneval": (64, 2), "mbpp": (256, 2)},
    "dream-base": {"gsm8k": (128, 4), "math": (256, 8), "bbh": (64, 4), "humaneval": (64, 2), "mbpp": (256, 4)},
}
"""prompt_refresh and block_refresh, as published (arXiv 2603.10088)."""

_LENGTHS: Mapping[str, tuple[int, int]] = {
    "gsm8k": (256, 64),
    "math": (256, 256),
    "bbh": (256, 64),
    "humaneval": (512, 64),
    "mbpp": (512, 64),
}
"""gen_length and block_length."""


def _published(model: str, task: str) -> Preset:
    prompt, block = _REFRESH[model][task]
    gen_length, block_length = _LENGTHS[task]
    settings = {
        **_COMMON,
        **_MODES["es-dllm"][1],
        "refresh": {"name": "periodic", "prompt_refresh": prompt, "block_refresh": block},
        "gen_length": gen_length,
        "block_length": block_length,
    }
    summary = f"ES-dLLM's published setting for {model} on {task}"
    if model.startswith("dream"):
        settings["sampler"] = {"name": "gumbel", "top_p": 0.95, "top_k": 50}
        summary += "; its top_p and top_k act with a temperature, which is not published"
    return Preset(summary, settings)


def _modes() -> dict[str, Preset]:
    found = {}
    for name, (summary, settings) in _MODES.items():
        found[name] = Preset(summary, {**_COMMON, **settings})
        found[f"{name}-parallel"] = Preset(f"{summary}, several tokens per step", {**_COMMON, **settings, **_PARALLEL})
    return found


PRESETS: Mapping[str, Preset] = {
    **_modes(),
    **FAMILIES,
    **{f"es-dllm/{model}/{task}": _published(model, task) for model in _REFRESH for task in _REFRESH[model]},
}
