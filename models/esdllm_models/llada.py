"""LLaDA (GSAI-ML/LLaDA-8B-Base, -Instruct, LLaDA-1.5): config, weight names, special tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from esdllm import ModelAdapter, ModelSpec, TextCodec
from esdllm_models.reading import head_dim, need, refuse, token
from esdllm_models.tokenizers import LLADA_TEMPLATE, Codec, fast_tokenizer
from esdllm_models.transformer import Geometry, Transformer
from esdllm_models.weights import read_into

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
    "weight_tying": (False,),
}

_LAYER = {
    "attn_norm": "attn_norm.weight",
    "q": "q_proj.weight",
    "k": "k_proj.weight",
    "v": "v_proj.weight",
    "out": "attn_out.weight",
    "mlp_norm": "ff_norm.weight",
    "gate": "ff_proj.weight",
    "up": "up_proj.weight",
    "down": "ff_out.weight",
}


@attrs.frozen
class LladaFamily:
    """LLaDA and its fine-tunes."""

    @property
    def checkpoints(self) -> Mapping[str, Path]:
        """The tiny trained checkpoint of this package."""
        return {"tiny-llada": Path(__file__).parent / "tiny" / "llada"}

    def spec(self, config: Mapping[str, Any]) -> ModelSpec:
        """Return the geometry of a LLaDA config.json."""
        refuse(config, _IMPLEMENTED)
        hidden, heads = need(config, "d_model", int), need(config, "n_heads", int)
        kv_heads = heads if config.get("n_kv_heads") is None else need(config, "n_kv_heads", int)
        vocab = need(config, "vocab_size" if config.get("embedding_size") is None else "embedding_size", int)
        return ModelSpec(
            family="llada",
            n_layers=need(config, "n_layers", int),
            hidden=hidden,
            n_heads=heads,
            n_kv_heads=kv_heads,
            head_dim=head_dim(hidden, heads, kv_heads),
            vocab=vocab,
            context=need(config, "max_sequence_length", int),
            mask_id=token(config, "mask_token_id", vocab),
            eos_id=token(config, "eos_token_id", vocab),
        )

    def load(self, folder: Path, config: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> ModelAdapter:
        """Return the model with a folder's weights."""
        geometry = Geometry(
            mlp=need(config, "mlp_hidden_size", int),
            rope_theta=need(config, "rope_theta", float),
            norm_eps=need(config, "rms_norm_eps", float),
            qkv_bias=False,
        )
        model = Transformer(self.spec(config), geometry, device, dtype)
        prefix = "model.transformer."
        slots = {
            f"{prefix}wte.weight": model.embedding,
            f"{prefix}ln_f.weight": model.norm,
            f"{prefix}ff_out.weight": model.head,
        }
        for layer in range(model.spec.n_layers):
            slots.update({f"{prefix}blocks.{layer}.{_LAYER[name]}": x for name, x in model.slots(layer).items()})
        read_into(folder, slots)
        return model

    def codec(self, folder: Path, spec: ModelSpec) -> TextCodec:
        """Return the tokenizer of a folder's tokenizer.json, with LLaDA's chat template if it brings none."""
        return Codec(fast_tokenizer(folder), spec, end_of_turn="<|eot_id|>", template=LLADA_TEMPLATE)
