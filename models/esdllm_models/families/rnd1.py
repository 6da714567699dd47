"""RND1 (radicalnumerics/RND1-Base): Qwen3-MoE without the causal mask, and logits that predict the next token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from esdllm_models.blueprint import Blueprint
from esdllm_models.families.common import DecoderFamily
from esdllm_models.families.qwen3_moe import EXPERT_KEYS, qwen3_experts
from esdllm_models.stock import check, flag, stock

_RND1 = {
    "model_type": "rnd1",
    "torch_dtype": "bfloat16",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "norm_topk_prob": True,
    "vocab_size": 151936,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40960,
    "mask_token_id": 151669,
    "eos_token_id": 151645,
}


@attrs.frozen
class Rnd1Family(DecoderFamily):
    """RND1: 30B in experts, of which 3B are active; every position sees every other."""

    name = "rnd1"
    chat_template = ""

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """RND1's own."""
        return {"rnd1-30b": _RND1}

    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        """Return what a config.json describes."""
        check(config, {"is_causal": (False, None)}, ("moe_backend", *EXPERT_KEYS))
        biased = flag(config, "attention_bias")
        return stock(
            config,
            self.name,
            own_head_dim=None,
            mixture=qwen3_experts(config),
            qk_norm=True,
            qkv_bias=biased,
            out_bias=biased,
            mask_id=151669,
            logit_shift=1,
        )
