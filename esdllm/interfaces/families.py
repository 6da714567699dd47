"""How models are recognised, described and loaded, and their text."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from esdllm.interfaces.kernels import ModelAdapter
from esdllm.views import ComputeChoice, LoadPlan, Message, ModelSpec, Published

__all__ = ["ModelFamily", "OfferingFamily", "TextCodec"]


class TextCodec(Protocol):
    """Text to tokens and back."""

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: end of text, end of turn."""
        ...

    @property
    def has_chat(self) -> bool:
        """Whether the checkpoint brings a chat template."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a plain text."""
        ...

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens of a conversation, up to where the assistant's answer begins."""
        ...

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        """Return the text of tokens."""
        ...


class ModelFamily(Protocol):
    """How to describe and load the checkpoints of one kind, by default those whose `model_type` is its name."""

    def spec(self, config: Mapping[str, Any]) -> ModelSpec:
        """Return the geometry from a config.json; refuse by name what is not implemented.

        Where the config has no `mask_token_id` and the checkpoint's tokenizer names a mask token, its id is in `config`. What a
        user told beside the family's name is there too: `block_size`, `mask_token_id`, `eos_token_id`.
        """
        ...

    def load(self, folder: Path, config: Mapping[str, Any], plan: LoadPlan) -> ModelAdapter:
        """Return the model of a plan with the weights of a checkpoint folder.

        Where the plan has a seed, the weights are random and the folder is not read. A plan asks for no more than the family
        offers (`OfferingFamily`): the weights as they are, read, and on one device, unless it says more.
        """
        ...

    def weight_bytes(self, config: Mapping[str, Any], plan: LoadPlan) -> int:
        """Return what the weights of a plan take, on all devices together; nothing is read."""
        ...

    def from_module(self, module: Any, config: Mapping[str, Any]) -> ModelAdapter:
        """Return a model that computes with the weights of a loaded torch module, copying none of them."""
        ...

    def codec(self, source: Any, spec: ModelSpec) -> TextCodec:
        """Return the tokenizer and chat template of a checkpoint folder (a Path), or of a tokenizer of transformers.

        Raises:
            TokenizerError: there is none that can be read; the model is loaded all the same, for token ids.
            CheckpointError: the tokenizer is not the model's; nothing is loaded.
        """
        ...


class OfferingFamily(ModelFamily, Protocol):
    """What a family may offer beside. Each member is looked up by itself: one that is absent is empty, or no."""

    @property
    def model_types(self) -> Collection[str]:
        """The `model_type`s that the configs of its checkpoints say; absent: the name that the family is offered under."""
        ...

    def claims(self, config: Mapping[str, Any]) -> bool:
        """Return whether a config.json is surely this family's own, whatever its `model_type`, say by `architectures`.

        A family that claims a config goes before those that have its `model_type` and no word of their own; two that claim it
        are an error. One that has this method reads what it does not claim only where the user names it.
        """
        ...

    @property
    def checkpoints(self) -> Mapping[str, Path]:
        """Checkpoints that ship with the plugin, by the name that `load_model` takes."""
        ...

    @property
    def geometries(self) -> Mapping[str, Mapping[str, Any]]:
        """The config.json of well-known checkpoints by a short name, for models of that size with random weights."""
        ...

    @property
    def published(self) -> Mapping[str, Published]:
        """Public checkpoints that the family reads, by hub id: `load_model` then needs no word of the user on them."""
        ...

    @property
    def verified(self) -> str:
        """What was compared with the public code, and what was not, in a few words."""
        ...

    @property
    def suits(self) -> Collection[str]:
        """The presets of its published procedures: their names, or what those begin with, as in `sdar/`."""
        ...

    @property
    def quantizations(self) -> Collection[str]:
        """The names of `quantize` that `load` and `weight_bytes` follow."""
        ...

    @property
    def computes(self) -> Collection[str]:
        """The names of `compute`, kernels of linear layers in full, that `load` and `weight_bytes` follow."""
        ...

    def choose_compute(self, config: Mapping[str, Any], plan: LoadPlan, measure: bool) -> ComputeChoice:
        """Return which of `computes` a plan takes that names none; absent: `load` is given None.

        What this takes to find out it may measure, for two seconds at most, unless `measure` is false; the same machine gives
        the same answer. It is asked for weights in full alone.
        """
        ...

    def hidden_dtype(self, plan: LoadPlan) -> torch.dtype:
        """Return the dtype of the hidden states under a plan; absent: the plan's, which is the weights'."""
        ...

    @property
    def spreads(self) -> bool:
        """Whether `load` can put the layers on several devices."""
        ...

    @property
    def draws(self) -> bool:
        """Whether `load` can draw random weights from a seed."""
        ...

    @property
    def merges(self) -> bool:
        """Whether `load` merges a LoRA adapter into the weights that it reads."""
        ...

    @property
    def unpacks(self) -> bool:
        """Whether `load` reads weights that the config says are quantised; else `load_model` refuses them."""
        ...

    def problems(self, config: Mapping[str, Any], plan: LoadPlan) -> list[str]:
        """Return why `load` would refuse a plan on its devices, such as a quantisation; empty if it would not."""
        ...
