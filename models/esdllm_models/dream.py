"""Dream (Dream-org/Dream-v0-*, Dream-Coder, apple/DiffuCoder): config, weight names, special tokens, logit shift."""

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
from esdllm.checkpoints.text import CHATML, Codec
from esdllm.checkpoints.weights import Stated
from esdllm_models.adopting import adopt
from esdllm_models.building import Names, Sizes, load, problems, weight_bytes
from esdllm_models.quantized import QUANTIZERS
from esdllm_models.tokenizers import tokenizer_of
from esdllm_models.transformer import Geometry

_IMPLEMENTED = {
    "hidden_act": ("silu",),
    "tie_word_embeddings": (False, True),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
}
_WINDOWED = {"sliding_window", "max_window_layers"}  # of no account without use_sliding_window
_READ = {*_IMPLEMENTED, *_WINDOWED, "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"}
"""keys that may say how the model computes, because they are read"""

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

NAMES = Names(
    outer={"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"},
    layer="model.layers.{}.",
    inner={
        "attn_norm": "input_layernorm.weight",
        "q": "self_attn.q_proj.weight",
        "k": "self_attn.k_proj.weight",
        "v": "self_attn.v_proj.weight",
        "q_bias": "self_attn.q_proj.bias",
        "k_bias": "self_attn.k_proj.bias",
        "v_bias": "self_attn.v_proj.bias",
        "out": "self_attn.o_proj.weight",
        "mlp_norm": "post_attention_layernorm.weight",
        "gate": "mlp.gate_proj.weight",
        "up": "mlp.up_proj.weight",
        "down": "mlp.down_proj.weight",
    },
)
"""What the checkpoints call the weights."""


@attrs.frozen
class DreamFamily:
    """Dream and its fine-tunes: Qwen2's layers without the causal mask, and logits that predict the next token."""

    @property
    def checkpoints(self) -> Mapping[str, Path]:
        """The tiny trained checkpoint of this package."""
        return {"tiny-dream": Path(__file__).parent / "tiny" / "dream"}

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """Dream-7B's."""
        return {"dream-7b": _DREAM_7B}

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
        """Return the geometry of a Dream config.json."""
        refuse_unread(config, _READ)
        refuse(config, _IMPLEMENTED)
        _geometry(config)  # refuses what is out of range
        sizes = _sizes(config)
        vocab = sizes.vocab.value
        return ModelSpec(
            family="Dream",
            n_layers=sizes.layers.value,
            hidden=sizes.hidden.value,
            n_heads=size(config, "num_attention_heads"),
            n_kv_heads=sizes.keys.value,
            head_dim=sizes.keys.each,
            vocab=vocab,
            context=size(config, "max_position_embeddings"),
            mask_id=token(config, "mask_token_id", vocab),
            eos_id=token(config, "eos_token_id", vocab),
            stop_ids=stop_ids(config, vocab)[1:],
            logit_shift=1,
            intermediate=sizes.intermediate.value,
            remembers_forbidden=True,
        )

    def load(self, folder: Path, config: Mapping[str, Any], plan: LoadPlan) -> ModelAdapter:
        """Return the model of a plan, with a folder's weights."""
        names = NAMES.tied() if config.get("tie_word_embeddings") else NAMES
        return load(self.spec(config), _geometry(config), names, _sizes(config), folder, plan)

    def weight_bytes(self, config: Mapping[str, Any], plan: LoadPlan) -> int:
        """Return what the weights take."""
        return weight_bytes(self.spec(config), _geometry(config), plan)

    def problems(self, config: Mapping[str, Any], plan: LoadPlan) -> list[str]:
        """Return why the weights cannot be held as a plan says; empty if they can."""
        return problems(self.spec(config), plan)

    def from_module(self, module: Any, config: Mapping[str, Any]) -> ModelAdapter:
        """Return a model that computes with the module's own weights."""
        return adopt(self.spec(config), _geometry(config), NAMES, module, bool(config.get("tie_word_embeddings")))

    def codec(self, source: Any, spec: ModelSpec) -> TextCodec:
        """Return Qwen2's byte-level tokenizer, with ChatML if the folder brings no template."""
        return Codec(tokenizer_of(source), spec, end_of_turn="<|im_end|>", template=CHATML)


def _sizes(config: Mapping[str, Any]) -> Sizes:
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    kv_heads = size(config, "num_key_value_heads")
    each = head_dim(hidden, heads, kv_heads)
    return Sizes(
        layers=Stated("num_hidden_layers", size(config, "num_hidden_layers", MOST_LAYERS)),
        hidden=Stated("hidden_size", hidden),
        queries=Stated("hidden_size", hidden),
        keys=Stated("num_key_value_heads", kv_heads, each, "hidden_size / num_attention_heads"),
        vocab=Stated("vocab_size", size(config, "vocab_size")),
        intermediate=Stated("intermediate_size", size(config, "intermediate_size")),
    )


def _geometry(config: Mapping[str, Any]) -> Geometry:
    return Geometry(
        rope_theta=rope_theta(config),
        norm_eps=factor(config, "rms_norm_eps"),
        qkv_bias=True,
    )
