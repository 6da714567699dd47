"""Nemotron-Labs-Diffusion (nvidia): Ministral 3's layers; a block is bidirectional, what comes before it causal."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import attrs

from esdllm import BlockCausal, option
from esdllm_models.blueprint import Blueprint
from esdllm_models.families.common import ThinkingFamily
from esdllm_models.rope import rope_of
from esdllm_models.stock import LLAMA_NAMES, block_size, check, stock

_BLOCK = 32
_NAMES = attrs.evolve(
    LLAMA_NAMES,
    outer={"embedding": "encoder.embed_tokens", "norm": "encoder.norm", "head": "diffusion_head"},
    layer="encoder.layers.{}.",
)

_8B = {
    "model_type": "nemotron_labs_diffusion",
    "torch_dtype": "bfloat16",
    "hidden_size": 4096,
    "num_hidden_layers": 34,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 14336,
    "vocab_size": 131072,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 262144,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 16384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
    "block_size": _BLOCK,
    "mask_token_id": 100,
    "eos_token_id": 11,
}
_3B = {**_8B, "hidden_size": 3072, "num_hidden_layers": 26, "intermediate_size": 9216}


@attrs.frozen
class NemotronFamily(ThinkingFamily):
    """Nemotron-Labs-Diffusion: keys are written causally, and the last row of a write tells the next block's first token."""

    name = "nemotron_labs_diffusion"
    chat_template = ""
    causal_context: bool = option(
        "whether keys of the prompt and of finished blocks are written causally; if not, each sees itself whole",
        default=True,
    )

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """Those of the models of 3B and 8B."""
        return {"nemotron-labs-diffusion-3b": _3B, "nemotron-labs-diffusion-8b": _8B}

    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        """Return what a config.json describes."""
        check(
            config,
            {"dlm_paradigm": ("bidirectional",), "attention_bias": (False, None), "mlp_bias": (False, None)},
        )
        size = block_size(config, "block_size", _BLOCK)
        causal = BlockCausal(size, "prompt-end", written=1, leads=True)
        return stock(
            config,
            self.name,
            names=_NAMES,
            own_head_dim=None,
            rope=partial(rope_of, scaled=True),
            attention=causal if self.causal_context else BlockCausal(size, "prompt-end", whole_prompt=True),
        )
