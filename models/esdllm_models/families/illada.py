"""iLLaDA (GSAI-ML/iLLaDA-8B-*): not LLaDA's layers but Llama's, without the causal mask."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs

from esdllm_models.blueprint import Blueprint
from esdllm_models.families.common import DecoderFamily
from esdllm_models.rope import rope_of
from esdllm_models.stock import check, flag, stock

_MASK = 5  # as its README says

_8B = {
    "model_type": "illada",
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
    "tie_word_embeddings": True,
    "mask_token_id": _MASK,
    "eos_token_id": 2,
}


@attrs.frozen
class ILladaFamily(DecoderFamily):
    """iLLaDA: grouped queries, and a head that is the embedding."""

    name = "illada"
    chat_template = ""

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """That of iLLaDA-8B."""
        return {"illada-8b": _8B}

    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        """Return what a config.json describes."""
        check(config, {"layer_norm_eps": (None,)})  # a number would be for LayerNorm in place of RMSNorm
        biased = flag(config, "attention_bias")
        return stock(
            config,
            self.name,
            rope=partial(rope_of, kinds=("default",)),
            qkv_bias=biased,
            out_bias=biased,
            mlp_bias=flag(config, "mlp_bias"),
            mask_id=_MASK,
        )
