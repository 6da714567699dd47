"""Qwen3-MoE's experts as config.json tells them, which several families have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esdllm.checkpoints.reading import MOST_LAYERS, refuse, size
from esdllm.checkpoints.weights import Stated
from esdllm_models.feedforward import Routing
from esdllm_models.stock import Mixture, flag, numbers

__all__ = ["EXPERT_KEYS", "qwen3_experts"]

EXPERT_KEYS = (
    "decoder_sparse_step",
    "mlp_only_layers",
    "moe_intermediate_size",
    "norm_topk_prob",
    "num_experts",
    "num_experts_per_tok",
    "num_local_experts",  # what transformers 5 calls num_experts
    "output_router_logits",
    "router_aux_loss_coef",
)
"""Keys that are read, and those of training."""


def qwen3_experts(config: Mapping[str, Any]) -> Mixture:
    """Return what a config.json says of experts: softmax over all of them, no groups, no bias, none that is shared.

    A layer has experts if it is none of `mlp_only_layers`, and its number, counted from 1, divides by `decoder_sparse_step`.

    Raises:
        CheckpointError: a size is missing or out of range, or no layer has experts.
    """
    layers, step = size(config, "num_hidden_layers", MOST_LAYERS), 1
    if config.get("decoder_sparse_step") is not None:
        step = size(config, "decoder_sparse_step")
    dense = numbers(config, "mlp_only_layers")
    sparse = tuple(layer for layer in range(layers) if layer not in dense and (layer + 1) % step == 0)
    local = config.get("num_experts") is None and config.get("num_local_experts") is not None
    key = "num_local_experts" if local else "num_experts"
    refuse(config, {"num_local_experts": (None, config.get(key))})
    return Mixture.of(
        sparse,
        Routing(size(config, "num_experts_per_tok"), normed=flag(config, "norm_topk_prob")),
        Stated(key, size(config, key)),
        Stated("moe_intermediate_size", size(config, "moe_intermediate_size")),
    )
