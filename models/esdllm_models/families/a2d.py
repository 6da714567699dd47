"""Tiny-A2D (dllm): autoregressive Qwen3, Qwen2 and Llama models that were converted to diffusion, as MDLM or as BD3LM.

The config.json is transformers' own with another `model_type`. Nothing in it tells the two conversions apart, nor the mask token,
which the tokenizer has. dllm's modelling code gives all layers the same mask, whatever the config says of sliding windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs

from esdllm import BlockCausal, CheckpointError, option
from esdllm_models.blueprint import Blueprint
from esdllm_models.families.common import DecoderFamily
from esdllm_models.stock import block_size, check, flag, stock
from esdllm_models.tokenizers import LLAMA3_TEMPLATE

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
    "eos_token_id": 151645,
}
_QWEN2_05B = {
    **_QWEN3_06B,
    "model_type": "a2d-qwen2",
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "mask_token_id": 151665,
}


_PUBLISHED_BLOCK = 32
"""positions of a block in all of dllm's commands for BD3LM; no config.json says it"""


@attrs.frozen
class _A2D(DecoderFamily):
    """What the conversions of all bases share."""

    right_shift_logits: bool = option(
        "whether a position's logits tell the next token; dllm's samplers can be told so, and no published checkpoint is used so",
        default=False,
    )
    base: ClassVar[str]
    bd3lm: ClassVar[bool] = False

    @property
    def name(self) -> str:  # type: ignore[override]  # what the others have as a constant
        """The name that it is offered under."""
        return f"a2d-{self.base}-{'bd3lm' if self.bd3lm else 'mdlm'}"

    def _stock(self, config: Mapping[str, Any], own_head_dim: bool | None, **switches: Any) -> Blueprint:
        check(config, {}, windows=True)
        if self.right_shift_logits and self.bd3lm:
            raise CheckpointError(
                "right_shift_logits = true: no position before a block tells the block's first token in bd3lm; leave it out"
            )
        attention = (
            BlockCausal(block_size(config, "block_size", _PUBLISHED_BLOCK), "prompt-end") if self.bd3lm else None
        )
        shift = int(self.right_shift_logits)
        return stock(config, self.name, own_head_dim=own_head_dim, attention=attention, logit_shift=shift, **switches)


@attrs.frozen
class A2DQwen3(_A2D):
    """Qwen3 converted as MDLM: every position sees every other."""

    enable_thinking: bool = option("whether the chat template lets the model think aloud; dllm does not", default=False)
    base: ClassVar[str] = "qwen3"
    model_types = ("a2d-qwen3",)
    """What config.json says."""

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """That of Qwen3-0.6B."""
        return {} if self.bd3lm else {"a2d-qwen3-0.6b": _QWEN3_06B}

    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        """Return what a config.json describes."""
        biased = flag(config, "attention_bias")
        return self._stock(config, True, qk_norm=True, qkv_bias=biased, out_bias=biased)

    def _template_options(self) -> Mapping[str, Any]:
        return {"enable_thinking": self.enable_thinking}


@attrs.frozen
class A2DQwen2(_A2D):
    """Qwen2 converted as MDLM: every position sees every other."""

    base = "qwen2"
    model_types = ("a2d-qwen2",)
    """What config.json says."""

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """That of Qwen2.5-Coder-0.5B."""
        return {} if self.bd3lm else {"a2d-qwen2-0.5b": _QWEN2_05B}

    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        """Return what a config.json describes."""
        return self._stock(config, None, qkv_bias=True)


@attrs.frozen
class A2DLlama(_A2D):
    """Llama converted as MDLM: every position sees every other."""

    ends = ("<|eot_id|>", "<|end_of_text|>")
    chat_template = LLAMA3_TEMPLATE

    base = "llama"
    model_types = ("a2d-llama",)
    """What config.json says."""

    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        """Return what a config.json describes."""
        biased = flag(config, "attention_bias")
        return self._stock(config, None, qkv_bias=biased, out_bias=biased, mlp_bias=flag(config, "mlp_bias"))


@attrs.frozen
class A2DQwen3Bd3lm(A2DQwen3):
    """Qwen3 converted as BD3LM: a position sees its own block and those before it."""

    bd3lm = True


@attrs.frozen
class A2DQwen2Bd3lm(A2DQwen2):
    """Qwen2 converted as BD3LM: a position sees its own block and those before it."""

    bd3lm = True


@attrs.frozen
class A2DLlamaBd3lm(A2DLlama):
    """Llama converted as BD3LM: a position sees its own block and those before it."""

    bd3lm = True
