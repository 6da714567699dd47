"""Tiny random transformers models that compute what LLaDA and Dream do, and their weights under those names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from helpers import read_config
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

_SIZES = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
}


def _rope(theta: float) -> dict[str, Any]:
    return {"rope_theta": theta, "rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def _shaken(model: Any) -> Any:
    """Return a model whose weights are large enough for every one of them, norms and biases too, to show in the logits."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return model.eval()


def llama(kv_heads: int = 4) -> LlamaForCausalLM:
    """Return a tiny random Llama: LLaDA's layers."""
    torch.manual_seed(0)
    return _shaken(LlamaForCausalLM(LlamaConfig(**_SIZES, num_key_value_heads=kv_heads, **_rope(500000.0))))


def qwen2() -> Qwen2ForCausalLM:
    """Return a tiny random Qwen2: Dream's layers."""
    torch.manual_seed(1)
    return _shaken(Qwen2ForCausalLM(Qwen2Config(**_SIZES, num_key_value_heads=2, **_rope(1000000.0))))


def bidirectional_logits(model: Any, tokens: Tensor) -> Tensor:
    """Return a transformers model's logits (B, L, V) with every position attending to every other."""
    nothing_hidden = torch.zeros(tokens.shape[0], 1, tokens.shape[1], tokens.shape[1])
    with torch.no_grad():
        return model(input_ids=tokens, attention_mask=nothing_hidden, use_cache=False).logits


def llada_config(n_kv_heads: int | None) -> dict[str, Any]:
    """Return the LLaDA config.json of a tiny Llama."""
    sizes = {"d_model": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": n_kv_heads, "mlp_hidden_size": 48}
    return {**read_config("llada-0"), **sizes}


def dream_config() -> dict[str, Any]:
    """Return the Dream config.json of a tiny Qwen2."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "rms_norm_eps": 1e-5}
    return {**read_config("dream-0"), **sizes}


_LLADA_NAMES = (
    ("model.embed_tokens.", "wte."),
    ("model.norm.", "ln_f."),
    ("lm_head.", "ff_out."),
    ("model.layers.", "blocks."),
    ("input_layernorm.", "attn_norm."),
    ("post_attention_layernorm.", "ff_norm."),
    ("self_attn.o_proj.", "attn_out."),
    ("self_attn.", ""),
    ("mlp.gate_proj.", "ff_proj."),
    ("mlp.up_proj.", "up_proj."),
    ("mlp.down_proj.", "ff_out."),
)


def llada_weights(model: LlamaForCausalLM) -> dict[str, Tensor]:
    """Return a Llama's weights under LLaDA's names."""
    return dict(_renamed(model))


def _renamed(model: LlamaForCausalLM) -> Iterator[tuple[str, Tensor]]:
    for name, weight in model.state_dict().items():
        for old, new in _LLADA_NAMES:
            name = name.replace(old, new)
        yield f"model.transformer.{name}", weight.clone()
