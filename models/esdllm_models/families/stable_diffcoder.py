"""Stable-DiffCoder (ByteDance-Seed/Stable-DiffCoder-8B-*): Llama's layers, block-causal attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from esdllm import BlockCausal
from esdllm.checkpoints.reading import class_names
from esdllm_models.blueprint import Blueprint
from esdllm_models.families.common import DecoderFamily
from esdllm_models.stock import block_size, check, flag, stock

_BLOCK = 4  # in all published examples; no config.json says it
_MASK = 5  # a default of the published code

_8B = {
    "model_type": "llama",
    "architectures": ["StableDiffcoderForCausalLM"],
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 155136,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "mask_token_id": _MASK,
    "eos_token_id": 2,
}


@attrs.frozen
class StableDiffCoderFamily(DecoderFamily):
    """Stable-DiffCoder: its config.json says `llama`, and its classes' names tell it."""

    name = "stable-diffcoder"
    chat_template = ""

    model_types = ("llama",)
    """What config.json says."""

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """That of the model of 8B."""
        return {"stable-diffcoder-8b": _8B}

    def claims(self, config: Mapping[str, Any]) -> bool:
        """Return whether `architectures` or `auto_map` name its classes."""
        return any("StableDiffcoder" in name for name in class_names(config))

    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        """Return what a config.json describes."""
        check(config, {})
        biased = flag(config, "attention_bias")
        return stock(
            config,
            self.name,
            own_head_dim=None,
            qkv_bias=biased,
            out_bias=biased,
            mlp_bias=flag(config, "mlp_bias"),
            mask_id=_MASK,
            attention=BlockCausal(block_size(config, "block_size", _BLOCK)),
        )
