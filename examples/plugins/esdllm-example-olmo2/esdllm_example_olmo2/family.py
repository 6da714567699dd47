"""How checkpoints of masked diffusion on OLMo 2 are described and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import attrs
from attrs import validators

from esdllm import LoadPlan, ModelAdapter, ModelSpec, TextCodec, option
from esdllm.checkpoints.reading import MOST_LAYERS, factor, head_dim, refuse, rope_theta, size, stop_ids, token
from esdllm_example_olmo2.model import Olmo2, shapes
from esdllm_example_olmo2.text import codec_of
from esdllm_example_olmo2.weights import adopted, drawn, read

_IMPLEMENTED = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "rope_scaling": (None,),
}

_OLMO2_1B = {
    "model_type": "a2d-olmo2",
    "torch_dtype": "bfloat16",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 8192,
    "vocab_size": 100352,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "mask_token_id": 100278,
    "pad_token_id": 100277,
    "eos_token_id": 100257,
}


@attrs.frozen
class Olmo2Family:
    """OLMo 2 without the causal mask, as a conversion by dLLM (arXiv:2602.22661) leaves it."""

    logit_shift: int = option(
        "0 where the logits predict the token at their own position, 1 where they predict the next one, as OLMo 2's did",
        validators.in_((0, 1)),
        default=0,
    )

    draws = True
    """Random weights are made from a seed."""

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """That of OLMo-2-1B."""
        return {"a2d-olmo2-1b": _OLMO2_1B}

    def spec(self, config: Mapping[str, Any]) -> ModelSpec:
        """Return the geometry of a config.json.

        Raises:
            CheckpointError: names what is missing or not implemented.
        """
        refuse(config, _IMPLEMENTED)
        rope_theta(config), factor(config, "rms_norm_eps")  # which refuse what is out of range
        hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
        kv_heads, vocab = size(config, "num_key_value_heads"), size(config, "vocab_size")
        end_of_text = "eos_token_id" if config.get("pad_token_id") is None else "pad_token_id"
        return ModelSpec(
            family="a2d-olmo2",
            n_layers=size(config, "num_hidden_layers", MOST_LAYERS),
            hidden=hidden,
            n_heads=heads,
            n_kv_heads=kv_heads,
            head_dim=head_dim(hidden, heads, kv_heads),
            vocab=vocab,
            context=size(config, "max_position_embeddings"),
            mask_id=token(config, "mask_token_id", vocab),
            eos_id=token(config, end_of_text, vocab),
            stop_ids=stop_ids(config, vocab),
            logit_shift=self.logit_shift,
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

    def _made(self, config: Mapping[str, Any], weights: Mapping[str, Any]) -> Olmo2:
        return Olmo2(self.spec(config), rope_theta(config), factor(config, "rms_norm_eps"), weights)
