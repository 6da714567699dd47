"""SDAR and SDAR-MoE (JetLM/SDAR-*): Qwen3's layers, block-causal attention, no shift."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from esdllm import BlockCausal
from esdllm_models.blueprint import Blueprint
from esdllm_models.families.common import ThinkingFamily
from esdllm_models.families.qwen3_moe import EXPERT_KEYS, qwen3_experts
from esdllm_models.stock import block_size, check, flag, stock

_IGNORED = ("debug", "ep_size", "fuse_cross_entropy", "micro_forward", "skip_checkpoint", "use_deepep")
"""switches of the training code"""
_BLOCK = 4
_MASK = 151669

_SDAR_8B = {
    "model_type": "sdar",
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "tie_word_embeddings": False,
    "block_size": _BLOCK,
    "mask_token_id": _MASK,
    "eos_token_id": 151643,
}
_SDAR_4B = {**_SDAR_8B, "hidden_size": 2560, "intermediate_size": 9728}


@attrs.frozen
class SdarFamily(ThinkingFamily):
    """SDAR's dense models; blocks are counted from the prompt's first token."""

    name = "sdar"

    @property
    def checkpoints(self) -> Mapping[str, Path]:
        """The tiny trained checkpoint of this package."""
        return {"tiny-sdar": Path(__file__).parents[1] / "tiny" / "sdar"}

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """Those of SDAR-4B and SDAR-8B."""
        return {"sdar-4b": _SDAR_4B, "sdar-8b": _SDAR_8B}

    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        """Return what a config.json describes."""
        check(config, {}, _IGNORED)
        return _stock(config, self.name)


@attrs.frozen
class SdarMoeFamily(ThinkingFamily):
    """SDAR's models with Qwen3-MoE's experts."""

    name = "sdar_moe"

    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        """Return what a config.json describes."""
        check(config, {}, (*_IGNORED, *EXPERT_KEYS))
        return _stock(config, self.name, mixture=qwen3_experts(config))


def _stock(config: Mapping[str, Any], name: str, **more: Any) -> Blueprint:
    biased = flag(config, "attention_bias")
    return stock(
        config,
        name,
        own_head_dim=None if "mixture" in more else True,
        qk_norm=True,
        qkv_bias=biased,
        out_bias=biased,
        mask_id=_MASK,
        attention=BlockCausal(block_size(config, "block_size", _BLOCK), fills=True),
        **more,
    )
