"""LLaDA2.0 and 2.1 (inclusionAI/LLaDA2.*): Ling's layers with many experts, block-causal attention."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs

from esdllm import BlockCausal
from esdllm.checkpoints.reading import factor, size
from esdllm.checkpoints.weights import Stated
from esdllm_models.blueprint import Blueprint, Names
from esdllm_models.families.common import DecoderFamily
from esdllm_models.feedforward import Routing
from esdllm_models.rope import rope_of
from esdllm_models.stock import Mixture, block_size, check, flag, stock
from esdllm_models.tokenizers import ROLES_TEMPLATE

_BLOCK = 32
_MASK = 156895  # a default of the published code
_IGNORED = (
    "moe_router_enable_expert_bias",  # the published code has the bias,
    "norm_topk_prob",  # divides by the sum,
    "score_function",  # and takes the sigmoid, whatever these say
    "output_router_logits",
    "rotary_dim",
    "router_dtype",
)
_READ = (
    "first_k_dense_replace",
    "moe_intermediate_size",
    "n_group",
    "num_experts",
    "num_experts_per_tok",
    "num_shared_experts",
    "routed_scaling_factor",
    "topk_group",
    "use_qk_norm",
)
_NAMES = Names(
    outer={"embedding": "model.word_embeddings", "norm": "model.norm", "head": "lm_head"},
    layer="model.layers.{}.",
    inner={
        "attn_norm": "input_layernorm",
        "qkv": "attention.query_key_value",
        "q_norm": "attention.query_layernorm",
        "k_norm": "attention.key_layernorm",
        "out": "attention.dense",
        "mlp_norm": "post_attention_layernorm",
        "router": "mlp.gate",
        **{name: f"mlp.{name}_proj" for name in ("gate", "up", "down")},
        **{f"shared_{name}": f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")},
    },
    experts={name: f"mlp.experts.{{}}.{name}_proj" for name in ("gate", "up", "down")},
    router_bias="mlp.gate.expert_bias",
)

_MINI = {
    "model_type": "llada2_moe",
    "torch_dtype": "bfloat16",
    "hidden_size": 2048,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 5120,
    "moe_intermediate_size": 512,
    "first_k_dense_replace": 1,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "routed_scaling_factor": 2.5,
    "use_qk_norm": True,
    "partial_rotary_factor": 0.5,
    "vocab_size": 157184,
    "rope_theta": 600000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "mask_token_id": _MASK,
    "eos_token_id": 156892,
}


@attrs.frozen
class Llada2Family(DecoderFamily):
    """LLaDA2.0 and 2.1: a sigmoid router with groups and a bias that steers the choice, a shared expert, half-rotary heads."""

    name = "llada2_moe"
    ends = ("<|role_end|>", "<|endoftext|>")
    chat_template = ROLES_TEMPLATE

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """That of LLaDA2.0-mini, 16B in experts of which 1.4B are active."""
        return {"llada2-mini": _MINI}

    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        """Return what a config.json describes."""
        check(config, {"norm_head": (False, None)}, (*_IGNORED, *_READ))
        return stock(
            config,
            self.name,
            names=_NAMES,
            own_head_dim=None,
            rope=partial(rope_of, partial=True),
            mixture=_experts(config),
            qk_norm=flag(config, "use_qk_norm"),
            qkv_bias=flag(config, "use_qkv_bias"),
            out_bias=flag(config, "use_bias"),
            mask_id=_MASK,
            attention=BlockCausal(block_size(config, "block_size", _BLOCK), fills=True),
        )


def _experts(config: Mapping[str, Any]) -> Mixture:
    layers, dense = size(config, "num_hidden_layers"), config.get("first_k_dense_replace") or 0
    chosen, expert = size(config, "num_experts_per_tok"), size(config, "moe_intermediate_size")
    routing = Routing(
        chosen,
        score="sigmoid",
        normed=chosen > 1,
        scaling=factor(config, "routed_scaling_factor"),
        bias="choice",
        groups=size(config, "n_group"),
        open_groups=size(config, "topk_group"),
    )
    shared = config.get("num_shared_experts") or 0
    return Mixture.of(
        range(dense, layers),
        routing,
        Stated("num_experts", size(config, "num_experts")),
        Stated("moe_intermediate_size", expert),
        Stated("num_shared_experts", shared, expert, "moe_intermediate_size") if shared else None,
    )
