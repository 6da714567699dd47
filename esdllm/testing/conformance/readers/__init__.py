"""How each family's recorded greedy runs are read: what the settings of the public procedures are called here."""

from __future__ import annotations

from collections.abc import Mapping

from esdllm.testing.conformance.readers.bidirectional import mdlm, read_illada, read_open_dcoder, read_rnd1
from esdllm.testing.conformance.readers.causal import (
    bd3lm,
    read_fast_dllm,
    read_llada2,
    read_nemotron,
    read_stable_diffcoder,
    sdar,
)
from esdllm.testing.conformance.readers.reading import Reader

__all__ = ["READERS", "Reader"]

READERS: Mapping[str, Mapping[str, Reader]] = {
    "a2d-qwen3": {"mdlm": mdlm("a2d-qwen3-mdlm", "a2d/mdlm"), "bd3lm": bd3lm("a2d-qwen3-bd3lm")},
    "a2d-qwen2": {"mdlm": mdlm("a2d-qwen2-mdlm", "a2d/mdlm"), "bd3lm": bd3lm("a2d-qwen2-bd3lm")},
    "a2d-llama": {"mdlm": mdlm("a2d-llama-mdlm", "a2d/mdlm"), "bd3lm": bd3lm("a2d-llama-bd3lm")},
    "llada": {"mdlm": mdlm("llada-moe", "llada-moe/static")},
    "illada": {"": read_illada},
    "rnd1": {"": read_rnd1},
    "qwen2": {"": read_open_dcoder},
    "sdar": {"": sdar("sdar")},
    "sdar_moe": {"": sdar("sdar_moe")},
    "llada2_moe": {"2.0": read_llada2, "2.1": read_llada2},
    "Fast_dLLM_Qwen": {"generate": read_fast_dllm, "batch_sample": read_fast_dllm},
    "nemotron_labs_diffusion": {"": read_nemotron},
    "llama": {"": read_stable_diffcoder},
}
"""By the config's `model_type`, and the procedure that a case names: its `sampler`, `function` or `version`."""
