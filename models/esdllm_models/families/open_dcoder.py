"""Open-dCoder (fredzzp/open-dcoder-*): Qwen2.5-Coder without the causal mask, and logits that predict the next token.

Its config.json is a plain Qwen2's, which says nothing of diffusion: the user says that it is of this family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

from esdllm_models.blueprint import Blueprint
from esdllm_models.families.common import DecoderFamily
from esdllm_models.stock import check, stock


@attrs.frozen
class OpenDCoderFamily(DecoderFamily):
    """Open-dCoder, where the user says so; the tokenizer has the mask token."""

    name = "open-dcoder"
    model_types = ("qwen2",)
    """What config.json says."""

    def claims(self, config: Mapping[str, Any]) -> bool:
        """Return False: a plain Qwen2 says the same."""
        return False

    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        """Return what a config.json describes."""
        check(config, {})
        return stock(config, self.name, own_head_dim=None, qkv_bias=True, logit_shift=1)
