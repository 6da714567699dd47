"""First-party model families, and the suite of the checkpoints that ship with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from esdllm import ModelFamily, Suite, hookimpl
from esdllm_models.families.a2d import (
    A2DLlama,
    A2DLlamaBd3lm,
    A2DQwen2,
    A2DQwen2Bd3lm,
    A2DQwen3,
    A2DQwen3Bd3lm,
)
from esdllm_models.families.dream import DreamFamily
from esdllm_models.families.fast_dllm import FastDllmFamily
from esdllm_models.families.illada import ILladaFamily
from esdllm_models.families.llada import LladaFamily
from esdllm_models.families.llada2 import Llada2Family
from esdllm_models.families.llada_moe import LladaMoeFamily
from esdllm_models.families.nemotron import NemotronFamily
from esdllm_models.families.open_dcoder import OpenDCoderFamily
from esdllm_models.families.rnd1 import Rnd1Family
from esdllm_models.families.sdar import SdarFamily, SdarMoeFamily
from esdllm_models.families.stable_diffcoder import StableDiffCoderFamily
from esdllm_models.suite import TinySuite


@hookimpl
def esdllm_model_adapters() -> Mapping[str, Callable[..., ModelFamily]]:
    """Offer the families, by name: the `model_type` of their config.json, where it is theirs alone."""
    return {
        "llada": LladaFamily,
        "Dream": DreamFamily,
        "llada-moe": LladaMoeFamily,
        "illada": ILladaFamily,
        "a2d-qwen3-mdlm": A2DQwen3,
        "a2d-qwen3-bd3lm": A2DQwen3Bd3lm,
        "a2d-qwen2-mdlm": A2DQwen2,
        "a2d-qwen2-bd3lm": A2DQwen2Bd3lm,
        "a2d-llama-mdlm": A2DLlama,
        "a2d-llama-bd3lm": A2DLlamaBd3lm,
        "open-dcoder": OpenDCoderFamily,
        "rnd1": Rnd1Family,
        "sdar": SdarFamily,
        "sdar_moe": SdarMoeFamily,
        "fast-dllm-v2": FastDllmFamily,
        "llada2_moe": Llada2Family,
        "nemotron_labs_diffusion": NemotronFamily,
        "stable-diffcoder": StableDiffCoderFamily,
    }


@hookimpl
def esdllm_suites() -> Mapping[str, Callable[..., Suite]]:
    """Offer the tiny checkpoints' problems."""
    return {"tiny": TinySuite}
