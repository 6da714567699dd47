"""What the families share: how a plan is followed, and how a checkpoint speaks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch

from esdllm import ComputeChoice, LoadPlan, ModelAdapter, ModelSpec, Published, TextCodec, option
from esdllm.checkpoints.text import CHATML, Codec
from esdllm_models.adopting import adopt
from esdllm_models.blueprint import Blueprint
from esdllm_models.building import choose_compute, hidden_dtype, load, problems, weight_bytes
from esdllm_models.linear.kernels import COMPUTES, QUANTIZERS
from esdllm_models.published import PUBLISHED, SUITS, VERIFIED
from esdllm_models.tokenizers import tokenizer_of

__all__ = ["DecoderFamily", "ThinkingFamily"]


@attrs.frozen
class DecoderFamily:
    """A family of which this package's decoder computes the models; what is its own is how a config.json is read."""

    @property
    def quantizations(self) -> Collection[str]:
        """Of the linear layers, as they are loaded."""
        return QUANTIZERS

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """The config.json of well-known checkpoints by a short name."""
        return {}

    @property
    def computes(self) -> Collection[str]:
        """Of the linear layers in full."""
        return COMPUTES

    def choose_compute(self, config: Mapping[str, Any], plan: LoadPlan, measure: bool) -> ComputeChoice:
        """Return the kernel that is fastest here and rounds no more than the checkpoint's dtype; a small model's by rule."""
        return choose_compute(self.blueprint(config), plan, measure)

    def hidden_dtype(self, plan: LoadPlan) -> torch.dtype:
        """Return the dtype of the hidden states: float32 where the kernel multiplies in it."""
        return hidden_dtype(plan)

    name: ClassVar[str]
    """under which it is offered"""
    spreads = True
    """Layers may lie on several devices."""
    draws = True
    """Random weights are made from a seed."""
    merges = True
    """LoRA adapters are merged into the weights that are read."""
    ends: ClassVar[Sequence[str]] = ("<|im_end|>", "<|endoftext|>")
    """words that end an answer, where the vocabulary has them; the first ends a turn too"""
    chat_template: ClassVar[str] = CHATML
    """for tokenizers that bring none; empty if there is none"""

    @property
    def published(self) -> Mapping[str, Published]:
        """The public checkpoints of the family, by hub id."""
        return PUBLISHED.get(self.name, {})

    @property
    def verified(self) -> str:
        """What was compared with the public code."""
        return VERIFIED.get(self.name, "")

    @property
    def suits(self) -> Collection[str]:
        """The presets of the family's published procedures."""
        return SUITS.get(self.name, ())

    @abstractmethod
    def blueprint(self, config: Mapping[str, Any]) -> Blueprint:
        """Return what a config.json describes; refuse by name what is not implemented."""

    def spec(self, config: Mapping[str, Any]) -> ModelSpec:
        """Return the geometry of a config.json."""
        return self.blueprint(config).spec

    def load(self, folder: Path, config: Mapping[str, Any], plan: LoadPlan) -> ModelAdapter:
        """Return the model of a plan, with a folder's weights."""
        return load(self.blueprint(config), folder, plan)

    def weight_bytes(self, config: Mapping[str, Any], plan: LoadPlan) -> int:
        """Return what the weights take."""
        return weight_bytes(self.blueprint(config), plan)

    def problems(self, config: Mapping[str, Any], plan: LoadPlan) -> list[str]:
        """Return why the weights cannot be held as a plan says; empty if they can."""
        return problems(self.blueprint(config), plan)

    def codec(self, source: Any, spec: ModelSpec) -> TextCodec:
        """Return the tokenizer of a folder, or the one that is given, with the family's template if it brings none."""
        turn, *ends = self.ends
        return Codec(tokenizer_of(source), spec, turn, self.chat_template, ends=ends, **self._template_options())

    def _template_options(self) -> Mapping[str, Any]:
        """Return the variables that chat templates read beside the messages."""
        return {}

    def from_module(self, module: Any, config: Mapping[str, Any]) -> ModelAdapter:
        """Return a model that computes with the module's own weights."""
        return adopt(self.blueprint(config), module)


@attrs.frozen
class ThinkingFamily(DecoderFamily):
    """A family whose chat templates have a switch for thinking aloud."""

    enable_thinking: bool | None = option("whether to think aloud; none: as the chat template has it", default=None)

    def _template_options(self) -> Mapping[str, Any]:
        return {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}
