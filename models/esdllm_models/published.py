"""The public checkpoints that the families know of, as public pages tell of them, and what of each family was verified."""

from __future__ import annotations

from collections.abc import Mapping

from esdllm import Published

__all__ = ["PUBLISHED", "SUITS", "VERIFIED"]

_NEMOTRON = "NVIDIA Nemotron Open"


def _sdar(size: float) -> dict[str, Published]:
    """Return SDAR's checkpoints of one size: blocks of 4 by default, the other sizes by name."""
    base = f"JetLM/SDAR-{size:g}B-Chat"
    named = {
        f"{base}-b{block}": Published(size, "MIT", block_size=block, lacks=f"block_size={block}")
        for block in (8, 16, 32, 64)
    }
    return {base: Published(size, "MIT", block_size=4), **named}


PUBLISHED: Mapping[str, Mapping[str, Published]] = {
    "llada": {
        "GSAI-ML/LLaDA-8B-Base": Published(8, "MIT"),
        "GSAI-ML/LLaDA-8B-Instruct": Published(8, "MIT"),
        "GSAI-ML/LLaDA-1.5": Published(8, "MIT"),
    },
    "Dream": {
        "Dream-org/Dream-v0-Base-7B": Published(7.6, "Apache-2.0"),
        "Dream-org/Dream-v0-Instruct-7B": Published(7.6, "Apache-2.0"),
        "Dream-org/Dream-Coder-v0-Base-7B": Published(7.6, "Apache-2.0"),
        "Dream-org/Dream-Coder-v0-Instruct-7B": Published(7.6, "Apache-2.0"),
        "apple/DiffuCoder-7B-Base": Published(7.6, "see its card"),
        "apple/DiffuCoder-7B-Instruct": Published(7.6, "see its card"),
        "apple/DiffuCoder-7B-cpGRPO": Published(7.6, "see its card"),
    },
    "llada-moe": {
        "inclusionAI/LLaDA-MoE-7B-A1B-Base": Published(7, "Apache-2.0", active=1.4),
        "inclusionAI/LLaDA-MoE-7B-A1B-Instruct": Published(7, "Apache-2.0", active=1.4),
    },
    "illada": {
        "GSAI-ML/iLLaDA-8B-Base": Published(8, "see its card"),
        "GSAI-ML/iLLaDA-8B-Instruct": Published(8, "see its card"),
    },
    "a2d-qwen3-mdlm": {"dllm-collection/Qwen3-0.6B-diffusion-mdlm-v0.1": Published(0.6, "Apache-2.0")},
    "a2d-qwen3-bd3lm": {"dllm-collection/Qwen3-0.6B-diffusion-bd3lm-v0.1": Published(0.6, "Apache-2.0", block_size=32)},
    "open-dcoder": {"fredzzp/open-dcoder-0.5B": Published(0.5, "see its card")},
    "rnd1": {"radicalnumerics/RND1-Base-0910": Published(30, "Apache-2.0", active=3)},
    "sdar": _sdar(1.7) | _sdar(4) | _sdar(8),
    "sdar_moe": {"JetLM/SDAR-30B-A3B-Chat": Published(30, "MIT", active=3, block_size=4)},
    "fast-dllm-v2": {
        "Efficient-Large-Model/Fast_dLLM_v2_1.5B": Published(1.5, "Apache-2.0", block_size=32),
        "Efficient-Large-Model/Fast_dLLM_v2_7B": Published(7.6, "Apache-2.0", block_size=32),
    },
    "llada2_moe": {
        "inclusionAI/LLaDA2.0-mini": Published(16, "Apache-2.0", active=1.4, block_size=32),
        "inclusionAI/LLaDA2.0-flash": Published(103, "Apache-2.0", block_size=32),
        "inclusionAI/LLaDA2.1-mini": Published(16, "Apache-2.0", active=1.4, block_size=32),
        "inclusionAI/LLaDA2.1-flash": Published(100, "Apache-2.0", block_size=32),
    },
    "nemotron_labs_diffusion": {
        f"nvidia/Nemotron-Labs-Diffusion-{size}B": Published(size, _NEMOTRON, block_size=32) for size in (3, 8, 14)
    },
    "stable-diffcoder": {
        "ByteDance-Seed/Stable-DiffCoder-8B-Base": Published(8.3, "MIT", block_size=4),
        "ByteDance-Seed/Stable-DiffCoder-8B-Instruct": Published(8.3, "MIT", block_size=4),
    },
}
"""By family; parameters are in 10^9, rounded. The hub was not asked: a checkpoint's card decides what its licence is."""

_TRIED = "tiny random checkpoint; public weights not tried"
_CODE = f"logits and greedy runs of the public code, {_TRIED}"
_LOOKALIKE = f"logits of the stock layers that it is made of, greedy runs of the public code, {_TRIED}"
_REWRITTEN = f"logits of the stock layers that it is made of, greedy runs of the public rule written again, {_TRIED}"

VERIFIED: Mapping[str, str] = {
    "llada": f"{_CODE}; a small trained checkpoint ships",
    "Dream": f"{_CODE}; a small trained checkpoint ships",
    "sdar": f"{_CODE}; a small trained checkpoint ships",
    **dict.fromkeys(
        (
            "llada-moe",
            *(f"a2d-{base}-{kind}" for base in ("qwen3", "qwen2", "llama") for kind in ("mdlm", "bd3lm")),
            "rnd1",
            "fast-dllm-v2",
            "llada2_moe",
        ),
        _CODE,
    ),
    **dict.fromkeys(("sdar_moe", "open-dcoder", "illada"), _LOOKALIKE),
    **dict.fromkeys(("nemotron_labs_diffusion", "stable-diffcoder"), _REWRITTEN),
}
"""By family, what was compared: the recorded cases in tests/conformance and tests/conformance-families."""

SUITS: Mapping[str, tuple[str, ...]] = {
    "llada": ("es-dllm/llada-instruct/", "es-dllm/llada-base/"),
    "Dream": ("es-dllm/dream-instruct/", "es-dllm/dream-base/"),
    "llada-moe": ("llada-moe/",),
    "illada": ("illada/",),
    **{f"a2d-{base}-{kind}": (f"a2d/{kind}",) for base in ("qwen3", "qwen2", "llama") for kind in ("mdlm", "bd3lm")},
    "open-dcoder": ("open-dcoder/",),
    "rnd1": ("rnd1/",),
    "sdar": ("sdar/",),
    "sdar_moe": ("sdar/",),
    "fast-dllm-v2": ("fast-dllm-v2/",),
    "llada2_moe": ("llada2/",),
    "nemotron_labs_diffusion": ("nemotron/",),
    "stable-diffcoder": ("stable-diffcoder/",),
}
"""By family, the presets of its published procedures, or what their names begin with."""
