"""Dream (Dream-org/Dream-v0-*, Dream-Coder, apple/DiffuCoder): config, weight names, special tokens, logit shift."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from esdllm_models.blueprint import Blueprint
from esdllm_models.families.common import DecoderFamily
from esdllm_models.stock import check, stock

_DREAM_7B = {
    "model_type": "Dream",
    "torch_dtype": "bfloat16",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18944,
    "vocab_size": 152064,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 131072,
    "mask_token_id": 151666,
    "eos_token_id": 151643,
}


@attrs.frozen
class DreamFamily(DecoderFamily):
    """Dream and its fine-tunes: Qwen2's layers without the causal mask, and logits that predict the next token."""

    name = "Dream"

    @property
    def checkpoints(self) -> Mapping[str, Path]:
        """The tiny trained checkpoint of this package."""
        return {"tiny-dream": Path(__file__).parents[1] / "tiny" / "dream"}

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """Dream-7B's."""
        return {"dream-7b": _DREAM_7B}

    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        """Return what a Dream config.json describes."""
        check(config, {"use_mrope": (False,)})
        return stock(config, self.name, qkv_bias=True, logit_shift=1)
