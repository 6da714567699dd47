"""Dream (Dream-org/Dream-v0-*, Dream-Coder, apple/DiffuCoder): config, weight names, special tokens, logit shift."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from esdllm import ModelAdapter, ModelSpec, TextCodec
from esdllm_models.reading import head_dim, need, refuse, token
from esdllm_models.tokenizers import CHATML_TEMPLATE, Codec, fast_tokenizer
from esdllm_models.transformer import Geometry, Transformer
from esdllm_models.weights import read_into

_IMPLEMENTED = {
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "tie_word_embeddings": (False,),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
}

_LAYER = {
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
}


@attrs.frozen
class DreamFamily:
    """Dream and its fine-tunes: Qwen2's layers without the causal mask, and logits that predict the next token."""

    @property
    def checkpoints(self) -> Mapping[str, Path]:
        """None ships with this package."""
        return {}

    def spec(self, config: Mapping[str, Any]) -> ModelSpec:
        """Return the geometry of a Dream config.json."""
        refuse(config, _IMPLEMENTED)
        hidden, heads = need(config, "hidden_size", int), need(config, "num_attention_heads", int)
        kv_heads, vocab = need(config, "num_key_value_heads", int), need(config, "vocab_size", int)
        return ModelSpec(
            family="Dream",
            n_layers=need(config, "num_hidden_layers", int),
            hidden=hidden,
            n_heads=heads,
            n_kv_heads=kv_heads,
            head_dim=head_dim(hidden, heads, kv_heads),
            vocab=vocab,
            context=need(config, "max_position_embeddings", int),
            mask_id=token(config, "mask_token_id", vocab),
            eos_id=token(config, "eos_token_id", vocab),
            logit_shift=1,
            remembers_forbidden=True,
        )

    def load(self, folder: Path, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> ModelAdapter:
        """Return the model with a folder's weights."""
        geometry = Geometry(
            mlp=need(config, "intermediate_size", int),
            rope_theta=need(config, "rope_theta", float),
            norm_eps=need(config, "rms_norm_eps", float),
            qkv_bias=True,
        )
        model = Transformer(self.spec(config), geometry, device, dtype)
        slots = {
            "model.embed_tokens.weight": model.embedding,
            "model.norm.weight": model.norm,
            "lm_head.weight": model.head,
        }
        for layer in range(model.spec.n_layers):
            slots.update({f"model.layers.{layer}.{_LAYER[name]}": x for name, x in model.slots(layer).items()})
        read_into(folder, slots)
        return model

    def codec(self, folder: Path, spec: ModelSpec) -> TextCodec:
        """Return Qwen2's byte-level tokenizer, with ChatML if the folder brings no template."""
        return Codec(fast_tokenizer(folder), spec, end_of_turn="<|im_end|>", template=CHATML_TEMPLATE)
