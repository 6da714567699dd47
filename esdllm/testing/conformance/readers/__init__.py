"""How each family's recorded greedy runs are read: what the settings of the public procedures are called here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esdllm.testing.conformance.readers.bidirectional import mdlm, read_illada, read_open_dcoder, read_rnd1
from esdllm.testing.conformance.readers.causal import (
    bd3lm,
    read_fast_dllm,
    read_llada2,
    read_nemotron,
    read_stable_diffcoder,
    sdar,
)
from esdllm.testing.conformance.readers.reading import Reader, strict

__all__ = ["READERS", "Reader"]

_LLADA: Mapping[str, Any] = {"temperature": 0.0, "remasking": "low_confidence"}


def _dllm(reader: Reader) -> Reader:
    read = ("max_new_tokens", "block_size", "steps", "cfg_scale", "right_shift_logits")
    return strict(reader, *read, scheduler="linear", **_LLADA)


def _sdar(family: str) -> Reader:
    read = ("gen_length", "block_length", "remasking_strategy", "denoising_steps", "confidence_threshold", "choice")
    return strict(sdar(family), *read, temperature=1.0, top_k=0, top_p=1.0)


_LLADA2 = strict(
    read_llada2,
    *("block_length", "gen_length", "steps", "threshold", "minimal_topk", "eos_early_stop"),
    *("editing_threshold", "max_post_steps", "num_to_transfer"),
    temperature=0.0,
)
_FAST_DLLM = strict(
    read_fast_dllm,
    *("max_new_tokens", "block_size", "small_block_size", "threshold", "use_block_cache"),
    temperature=0,
)

READERS: Mapping[str, Mapping[str, Reader]] = {
    "a2d-qwen3": {"mdlm": _dllm(mdlm("a2d-qwen3-mdlm", "a2d/mdlm")), "bd3lm": _dllm(bd3lm("a2d-qwen3-bd3lm"))},
    "a2d-qwen2": {"mdlm": _dllm(mdlm("a2d-qwen2-mdlm", "a2d/mdlm")), "bd3lm": _dllm(bd3lm("a2d-qwen2-bd3lm"))},
    "a2d-llama": {"mdlm": _dllm(mdlm("a2d-llama-mdlm", "a2d/mdlm")), "bd3lm": _dllm(bd3lm("a2d-llama-bd3lm"))},
    "llada": {"mdlm": _dllm(mdlm("llada-moe", "llada-moe/static"))},
    "illada": {"": strict(read_illada, "gen_length", "block_length", "steps", "threshold", **_LLADA)},
    "rnd1": {
        "": strict(
            read_rnd1,
            *("seq_len", "temperature", "num_steps", "eb_gamma", "add_eos_at_end"),
            greedy=True,
            top_k=None,
            top_p=None,
        )
    },
    "qwen2": {"": strict(read_open_dcoder, "max_new_tokens", "eps", "alg", "steps", temperature=0.0, alg_temp=0.0)},
    "sdar": {"": _sdar("sdar")},
    "sdar_moe": {"": _sdar("sdar_moe")},
    "llada2_moe": {"2.0": _LLADA2, "2.1": _LLADA2},
    "Fast_dLLM_Qwen": {"generate": _FAST_DLLM, "batch_sample": _FAST_DLLM},
    "nemotron_labs_diffusion": {
        "": strict(read_nemotron, "max_new_tokens", "block_length", "threshold", "causal_context", temperature=0.0)
    },
    "llama": {
        "": strict(read_stable_diffcoder, "gen_length", "steps", "block_length", "threshold", shift=False, **_LLADA)
    },
}
"""By the config's `model_type`, and the procedure that a case names: its `sampler`, `function` or `version`."""
