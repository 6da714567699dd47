"""How checkpoints of masked diffusion on Qwen3 are recognised, described and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import attrs

from esdllm import LoadPlan, ModelAdapter, ModelSpec, TextCodec
from esdllm.checkpoints.reading import MOST_LAYERS, factor, head_dim, refuse, rope_theta, size, stop_ids, token
from esdllm_example_qwen3.model import Qwen3, shapes
from esdllm_example_qwen3.text import codec_of
from esdllm_example_qwen3.weights import adopted, drawn, read

_IMPLEMENTED = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "rope_scaling": (None,),
    "use_sliding_window": (False,),
    "logit_shift": (0, 1),
}

_QWEN3_06B = {
    "model_type": "a2d-qwen3",
    "torch_dtype": "bfloat16",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "mask_token_id": 151669,
    "pad_token_id": 151643,
    "eos_token_id": 151645,
}


@attrs.frozen
class Qwen3Family:
    """Qwen3 without the causal mask: the A2D checkpoints of dLLM (arXiv:2602.22661) that were trained as MDLM.

    Their logits predict the token at their own position. A model whose logits predict the next one, as Qwen3's did before
    the conversion, says `"logit_shift": 1` in config.json.
    """

    draws = True
    """Random weights are made from a seed."""

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """Qwen3-0.6B's."""
        return {"a2d-qwen3-0.6b": _QWEN3_06B}

    def spec(self, config: Mapping[str, Any]) -> ModelSpec:
        """Return the geometry of a config.json.

        Raises:
            CheckpointError: names what is missing or not implemented.
        """
        refuse(config, _IMPLEMENTED)
        for kind in config.get("layer_types") or ():
            refuse({"layer_types": kind}, {"layer_types": ("full_attention",)})
        rope_theta(config), factor(config, "rms_norm_eps")  # which refuse what is out of range
        hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
        kv_heads, vocab = size(config, "num_key_value_heads"), size(config, "vocab_size")
        end_of_text = "eos_token_id" if config.get("pad_token_id") is None else "pad_token_id"
        return ModelSpec(
            family="a2d-qwen3",
            n_layers=size(config, "num_hidden_layers", MOST_LAYERS),
            hidden=hidden,
            n_heads=heads,
            n_kv_heads=kv_heads,
            head_dim=head_dim(hidden, heads, kv_heads, size(config, "head_dim")),
            vocab=vocab,
            context=size(config, "max_position_embeddings"),
            mask_id=token(config, "mask_token_id", vocab),
            eos_id=token(config, end_of_text, vocab),
            stop_ids=stop_ids(config, vocab),
            logit_shift=config.get("logit_shift", 0),
            intermediate=size(config, "intermediate_size"),
        )

    def load(self, folder: Path, config: Mapping[str, Any], plan: LoadPlan) -> ModelAdapter:
        """Return the model of a plan, with a folder's weights or random ones."""
        wanted = self._shapes(config)
        return self._made(config, read(folder, wanted, plan) if plan.seed is None else drawn(wanted, plan.seed, plan))

    def weight_bytes(self, config: Mapping[str, Any], plan: LoadPlan) -> int:
        """Return what the weights take."""
        return sum(map(prod, self._shapes(config).values())) * plan.dtype.itemsize

    def from_module(self, module: Any, config: Mapping[str, Any]) -> ModelAdapter:
        """Return a model that computes with the module's own weights."""
        return self._made(config, adopted(module, self._shapes(config)))

    def codec(self, source: Any, spec: ModelSpec) -> TextCodec:
        """Return the tokenizer of a folder, or the one that was passed."""
        return codec_of(source, spec)

    def _shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        return shapes(self.spec(config), tied=bool(config.get("tie_word_embeddings", False)))

    def _made(self, config: Mapping[str, Any], weights: Mapping[str, Any]) -> Qwen3:
        return Qwen3(self.spec(config), rope_theta(config), factor(config, "rms_norm_eps"), weights)
