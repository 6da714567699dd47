"""LLaDA (GSAI-ML/LLaDA-8B-Base, -Instruct, LLaDA-1.5): config, weight names, special tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import attrs

from esdllm import LoadPlan, ModelAdapter, ModelSpec, TextCodec
from esdllm.checkpoints.reading import (
    MOST_LAYERS,
    factor,
    head_dim,
    refuse,
    refuse_unread,
    rope_theta,
    size,
    stop_ids,
    token,
)
from esdllm.checkpoints.text import Codec
from esdllm.checkpoints.weights import Stated
from esdllm_models.adopting import adopt
from esdllm_models.building import Names, Sizes, load, problems, weight_bytes
from esdllm_models.quantized import QUANTIZERS
from esdllm_models.tokenizers import LLADA_TEMPLATE, tokenizer_of
from esdllm_models.transformer import Geometry

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
_READ = {*_IMPLEMENTED, "alibi_bias_max", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"}
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
        "embedding": "model.transformer.wte.weight",
        "norm": "model.transformer.ln_f.weight",
        "head": "model.transformer.ff_out.weight",
    },
    layer="model.transformer.blocks.{}.",
    inner={
        "attn_norm": "attn_norm.weight",
        "q": "q_proj.weight",
        "k": "k_proj.weight",
        "v": "v_proj.weight",
        "out": "attn_out.weight",
        "mlp_norm": "ff_norm.weight",
        "gate": "ff_proj.weight",
        "up": "up_proj.weight",
        "down": "ff_out.weight",
    },
)
"""What the checkpoints call the weights."""


@attrs.frozen
class LladaFamily:
    """LLaDA and its fine-tunes."""

    @property
    def checkpoints(self) -> Mapping[str, Path]:
        """The tiny trained checkpoint of this package."""
        return {"tiny-llada": Path(__file__).parent / "tiny" / "llada"}

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """LLaDA-8B's."""
        return {"llada-8b": _LLADA_8B}

    @property
    def quantizations(self) -> Collection[str]:
        """Of the linear layers, as they are loaded."""
        return QUANTIZERS

    spreads = True
    """Layers may lie on several devices."""
    draws = True
    """Random weights are made from a seed."""
    merges = True
    """LoRA adapters are merged into the weights that are read."""

    def spec(self, config: Mapping[str, Any]) -> ModelSpec:
        """Return the geometry of a LLaDA config.json."""
        refuse_unread(config, _READ)
        refuse(config, _IMPLEMENTED)
        _geometry(config)  # refuses what is out of range
        sizes = _sizes(config)
        vocab = sizes.vocab.value
        return ModelSpec(
            family="llada",
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

    def load(self, folder: Path, config: Mapping[str, Any], plan: LoadPlan) -> ModelAdapter:
        """Return the model of a plan, with a folder's weights."""
        names = NAMES.tied() if config.get("weight_tying") else NAMES
        return load(self.spec(config), _geometry(config), names, _sizes(config), folder, plan)

    def weight_bytes(self, config: Mapping[str, Any], plan: LoadPlan) -> int:
        """Return what the weights take."""
        return weight_bytes(self.spec(config), _geometry(config), plan)

    def problems(self, config: Mapping[str, Any], plan: LoadPlan) -> list[str]:
        """Return why the weights cannot be held as a plan says; empty if they can."""
        return problems(self.spec(config), plan)

    def from_module(self, module: Any, config: Mapping[str, Any]) -> ModelAdapter:
        """Return a model that computes with the module's own weights."""
        return adopt(self.spec(config), _geometry(config), NAMES, module, bool(config.get("weight_tying")))

    def codec(self, source: Any, spec: ModelSpec) -> TextCodec:
        """Return the tokenizer of a folder's tokenizer.json, with LLaDA's chat template if it brings none."""
        return Codec(tokenizer_of(source), spec, end_of_turn="<|eot_id|>", template=LLADA_TEMPLATE)


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


def _geometry(config: Mapping[str, Any]) -> Geometry:
    return Geometry(
        rope_theta=rope_theta(config),
        norm_eps=factor(config, "rms_norm_eps"),
        qkv_bias=False,
    )
