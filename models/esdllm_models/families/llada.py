"""LLaDA (GSAI-ML/LLaDA-8B-Base, -Instruct, LLaDA-1.5): config, weight names, special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from esdllm import ModelSpec
from esdllm.checkpoints.reading import (
    MOST_LAYERS,
    factor,
    head_dim,
    refuse,
    refuse_unread,
    size,
    stop_ids,
    token,
)
from esdllm.checkpoints.weights import Stated
from esdllm_models.blueprint import Blueprint, Names, Sizes
from esdllm_models.decoder import Geometry
from esdllm_models.families.common import DecoderFamily
from esdllm_models.rope import rope_of
from esdllm_models.stock import ROPE_KEYS
from esdllm_models.tokenizers import LLADA_TEMPLATE

_IMPLEMENTED = {
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "activation_type": ("silu",),
    "bias_for_layer_norm": (False, None),
    "block_group_size": (1,),
    "block_type": ("llama",),
    "clip_qkv": (None,),
    "include_bias": (False,),
    "include_qkv_bias": (False,),
    "input_emb_norm": (False,),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "multi_query_attention": (False, None),
    "rope": (True,),
    "rope_full_precision": (True,),
    "scale_logits": (False,),
    "weight_tying": (False, True),
}
_READ = {*_IMPLEMENTED, *ROPE_KEYS, "alibi_bias_max"}
"""keys that may say how the model computes, because they are read"""

_LLADA_8B = {
    "model_type": "llada",
    "torch_dtype": "bfloat16",
    "d_model": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 32,
    "mlp_hidden_size": 12288,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "max_sequence_length": 4096,
    "mask_token_id": 126336,
    "eos_token_id": 126081,
}

NAMES = Names(
    outer={
        "embedding": "model.transformer.wte",
        "norm": "model.transformer.ln_f",
        "head": "model.transformer.ff_out",
    },
    layer="model.transformer.blocks.{}.",
    inner={
        "attn_norm": "attn_norm",
        "q": "q_proj",
        "k": "k_proj",
        "v": "v_proj",
        "out": "attn_out",
        "mlp_norm": "ff_norm",
        "gate": "ff_proj",
        "up": "up_proj",
        "down": "ff_out",
    },
)
"""What the checkpoints call the modules that hold weights."""


@attrs.frozen
class LladaFamily(DecoderFamily):
    """LLaDA and its fine-tunes."""

    name = "llada"
    ends = ("<|eot_id|>",)
    chat_template = LLADA_TEMPLATE

    @property
    def checkpoints(self) -> Mapping[str, Path]:
        """The tiny trained checkpoint of this package."""
        return {"tiny-llada": Path(__file__).parents[1] / "tiny" / "llada"}

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """LLaDA-8B's."""
        return {"llada-8b": _LLADA_8B}

    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        """Return what a LLaDA config.json describes."""
        refuse_unread(config, _READ)
        refuse(config, _IMPLEMENTED)
        sizes = _sizes(config)
        vocab = sizes.vocab.value
        geometry = Geometry(rope_of(config, sizes.keys.each, kinds=("default",)), factor(config, "rms_norm_eps"))
        spec = ModelSpec(
            family=self.name,
            n_layers=sizes.layers.value,
            hidden=sizes.hidden.value,
            n_heads=size(config, "n_heads"),
            n_kv_heads=sizes.keys.value,
            head_dim=sizes.keys.each,
            vocab=vocab,
            context=size(config, "max_sequence_length"),
            mask_id=token(config, "mask_token_id", vocab),
            eos_id=token(config, "eos_token_id", vocab),
            stop_ids=stop_ids(config, vocab)[1:],
            intermediate=sizes.intermediate.size,
        )
        return Blueprint(spec, geometry, attrs.evolve(NAMES, tied=bool(config.get("weight_tying"))), sizes)


def _sizes(config: Mapping[str, Any]) -> Sizes:
    """Return the sizes of the weights; those inside an MLP as told, or by their ratio to those outside, as published."""
    hidden, heads = size(config, "d_model"), size(config, "n_heads")
    kv_heads = heads if config.get("n_kv_heads") is None else size(config, "n_kv_heads")
    vocab = "vocab_size" if config.get("embedding_size") is None else "embedding_size"
    told = config.get("mlp_hidden_size") is not None or config.get("mlp_ratio") is None
    return Sizes(
        layers=Stated("n_layers", size(config, "n_layers", MOST_LAYERS)),
        hidden=Stated("d_model", hidden),
        queries=Stated("d_model", hidden),
        keys=Stated("n_kv_heads", kv_heads, head_dim(hidden, heads, kv_heads), "d_model / n_heads"),
        vocab=Stated(vocab, size(config, vocab)),
        intermediate=(
            Stated("mlp_hidden_size", size(config, "mlp_hidden_size"))
            if told
            else Stated("mlp_ratio", size(config, "mlp_ratio"), hidden, "d_model")
        ),
    )
