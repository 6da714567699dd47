"""LLaDA-MoE (inclusionAI/LLaDA-MoE-7B-A1B-*): experts, full attention. Its config.json says `llada`, as LLaDA's does."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs

from esdllm import CheckpointError
from esdllm.checkpoints.reading import MOST_LAYERS, class_names, size
from esdllm.checkpoints.weights import Stated
from esdllm_models.blueprint import Blueprint
from esdllm_models.families.common import DecoderFamily
from esdllm_models.feedforward import Routing
from esdllm_models.rope import rope_of
from esdllm_models.stock import LLAMA_NAMES, Mixture, check, flag, numbers, stock
from esdllm_models.tokenizers import ROLES_TEMPLATE

_MASK = 156895
_IGNORED = (
    "moe_router_score_function",  # the published code takes the softmax,
    "norm_topk_prob",  # never divides by the sum,
    "routed_scaling_factor",  # does not scale,
    "router_num_group",  # and has no groups, whatever these say
    "router_topk_group",
    "output_router_logits",
    "router_aux_loss_coef",
)
_READ = (
    "expert_intermediate_size",
    "moe_layer_freq",
    "moe_router_enable_expert_bias",
    "num_experts",
    "num_experts_per_tok",
    "qk_layernorm",
    "shared_expert_intermediate_size",
)
_NAMES = attrs.evolve(
    LLAMA_NAMES,
    inner={**LLAMA_NAMES.inner, **{f"shared_{name}": f"shared_expert.{name}_proj" for name in ("gate", "up", "down")}},
    router_bias="mlp.expert_bias",
)

_7B = {
    "model_type": "llada",
    "architectures": ["LLaDAMoEModelLM"],
    "torch_dtype": "bfloat16",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "dense_intermediate_size": 8192,
    "expert_intermediate_size": 1024,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_layer_freq": [1] * 16,
    "qk_layernorm": True,
    "vocab_size": 157184,
    "rope_theta": 50000.0,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "mask_token_id": _MASK,
    "eos_token_id": 156892,
}


@attrs.frozen
class LladaMoeFamily(DecoderFamily):
    """LLaDA-MoE: a softmax over all experts, whose weights are not divided by their sum."""

    name = "llada-moe"
    ends = ("<|role_end|>", "<|endoftext|>")
    chat_template = ROLES_TEMPLATE

    model_types = ("llada",)
    """What config.json says."""

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """That of LLaDA-MoE-7B-A1B."""
        return {"llada-moe-7b": _7B}

    def claims(self, config: Mapping[str, Any]) -> bool:
        """Return whether a config that says `llada` names its class, or has experts."""
        named = any("LLaDAMoE" in name for name in class_names(config))
        return named or (config.get("model_type") == "llada" and config.get("num_experts") is not None)

    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        """Return what a config.json describes."""
        check(config, {"clip_qkv": (None,)}, (*_IGNORED, *_READ))
        biased = flag(config, "attention_bias")
        return stock(
            config,
            self.name,
            inside_key="dense_intermediate_size",
            names=_NAMES,
            rope=partial(rope_of, partial=True),
            mixture=_experts(config),
            qk_norm=flag(config, "qk_layernorm"),
            qkv_bias=biased,
            out_bias=biased,
            mask_id=_MASK,
        )


def _experts(config: Mapping[str, Any]) -> Mixture:
    layers, frequency = size(config, "num_hidden_layers", MOST_LAYERS), numbers(config, "moe_layer_freq")
    if len(frequency) != layers:
        raise CheckpointError(
            f"config.json: moe_layer_freq has {len(frequency)} numbers, where num_hidden_layers = {layers} are needed"
        )
    shared = config.get("shared_expert_intermediate_size")
    return Mixture.of(
        (layer for layer in range(layers) if frequency[layer]),
        Routing(
            size(config, "num_experts_per_tok"),
            bias="score" if flag(config, "moe_router_enable_expert_bias") else "none",
        ),
        Stated("num_experts", size(config, "num_experts")),
        Stated("expert_intermediate_size", size(config, "expert_intermediate_size")),
        None
        if shared is None
        else Stated("shared_expert_intermediate_size", size(config, "shared_expert_intermediate_size")),
    )
