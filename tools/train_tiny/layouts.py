"""How each family's public checkpoints are written: the names of the weights and the keys of `config.json`.

Everything is declared here as data; `export.py` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

MAX_LENGTH = 1024
"""Positions that an exported model says it can hold."""


class Layout(NamedTuple):
    """One family's names for what the training model has."""

    title: str
    outer: Mapping[str, str]
    """modules outside of the blocks: name here, public name"""
    block: str
    """public prefix of a block, with its number left open"""
    inner: Mapping[str, str]
    """modules of a block: name here, public name"""
    sizes: Mapping[str, str]
    """key of `config.json`, field of `Size`"""
    tokens: Mapping[str, str]
    """key of `config.json`, field of `Dialect`"""
    settled: Mapping[str, object]
    """keys of `config.json` that are the same for every size"""

    def public(self, name: str) -> str:
        """The public name of a weight of the training model's state dict, such as `blocks.3.q.weight`."""
        module, kind = name.rsplit(".", 1)
        if not module.startswith("blocks."):
            return f"{self.outer[module]}.{kind}"
        _, number, part = module.split(".")
        return f"{self.block.format(number)}.{self.inner[part]}.{kind}"


_QWEN = {
    "attn_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_QWEN_OUTER = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_QWEN_SIZES = {
    "hidden_size": "hidden",
    "num_hidden_layers": "layers",
    "max_window_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "intermediate_size": "mlp",
    "vocab_size": "vocab_size",
    "rope_theta": "rope_theta",
    "rms_norm_eps": "norm_eps",
}
_QWEN_TOKENS = {
    "mask_token_id": "mask",
    "bos_token_id": "end_of_text",
    "eos_token_id": "end_of_text",
    "pad_token_id": "end_of_text",
}
_QWEN_SETTLED = {
    "max_position_embeddings": MAX_LENGTH,
    "hidden_act": "silu",
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "rope_scaling": None,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_sliding_window": False,
    "torch_dtype": "bfloat16",
}

LAYOUTS = {
    "llada": Layout(
        title="LLaDA",
        outer={
            "embedding": "model.transformer.wte",
            "norm": "model.transformer.ln_f",
            "head": "model.transformer.ff_out",
        },
        block="model.transformer.blocks.{}",
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
        sizes={
            "d_model": "hidden",
            "n_layers": "layers",
            "n_heads": "heads",
            "n_kv_heads": "kv_heads",
            "mlp_hidden_size": "mlp",
            "vocab_size": "vocab_size",
            "embedding_size": "vocab_size",
            "rope_theta": "rope_theta",
            "rms_norm_eps": "norm_eps",
        },
        tokens={"mask_token_id": "mask", "eos_token_id": "end_of_text", "pad_token_id": "end_of_text"},
        settled={
            "architectures": ["LLaDAModelLM"],
            "model_type": "llada",
            "max_sequence_length": MAX_LENGTH,
            "rope": True,
            "rope_full_precision": True,
            "layer_norm_type": "rms",
            "activation_type": "silu",
            "block_type": "llama",
            "include_bias": False,
            "include_qkv_bias": False,
            "input_emb_norm": False,
            "weight_tying": False,
            "scale_logits": False,
            "alibi": False,
            "torch_dtype": "bfloat16",
        },
    ),
    "dream": Layout(
        title="Dream",
        outer=_QWEN_OUTER,
        block="model.layers.{}",
        inner=_QWEN,
        sizes=_QWEN_SIZES,
        tokens=_QWEN_TOKENS,
        settled={"architectures": ["DreamModel"], "model_type": "Dream", **_QWEN_SETTLED, "use_mrope": False},
    ),
    "sdar": Layout(
        title="SDAR",
        outer=_QWEN_OUTER,
        block="model.layers.{}",
        inner=_QWEN | {"q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"},
        sizes=_QWEN_SIZES | {"head_dim": "head_dim"},
        tokens=_QWEN_TOKENS,
        settled={
            "architectures": ["SDARForCausalLM"],
            "model_type": "sdar",
            **_QWEN_SETTLED,
            "attention_bias": False,
            "block_size": 16,
        },
    ),
}
