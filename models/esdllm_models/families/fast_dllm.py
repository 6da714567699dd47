"""Fast-dLLM v2 (Efficient-Large-Model/Fast_dLLM_v2_*): Qwen2's layers, block-causal attention, a shift of 1 within a block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from esdllm import BlockCausal
from esdllm_models.blueprint import Blueprint
from esdllm_models.families.common import DecoderFamily
from esdllm_models.stock import block_size, check, stock

_BLOCK = 32
_MASK = 151665  # a default of the published code

_7B = {
    "model_type": "Fast_dLLM_Qwen",
    "torch_dtype": "bfloat16",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 32768,
    "bd_size": _BLOCK,
    "eos_token_id": 151645,
}


@attrs.frozen
class FastDllmFamily(DecoderFamily):
    """Fast-dLLM v2: blocks are counted from the prompt's first token, and a finished one tells the next one's first token."""

    name = "fast-dllm-v2"
    model_types = ("Fast_dLLM_Qwen",)
    """What config.json says."""

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """That of the model of 7B."""
        return {"fast-dllm-v2-7b": _7B}

    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        """Return what a config.json describes."""
        check(config, {})
        return stock(
            config,
            self.name,
            own_head_dim=None,
            qkv_bias=True,
            mask_id=_MASK,
            logit_shift=1,
            attention=BlockCausal(block_size(config, "bd_size", _BLOCK), leads=True, fills=True),
        )
