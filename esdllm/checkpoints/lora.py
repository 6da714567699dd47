"""LoRA adapters in PEFT's format: a folder with adapter_config.json and adapter_model.safetensors, merged as weights are read.

A weight W becomes W + scaling * B A, in float32 and rounded once; scaling is alpha / r, with rsLoRA alpha / sqrt(r)
(Hu et al., arXiv 2106.09685; Kalajdzievski, arXiv 2312.03732).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from esdllm.checkpoints.naming import unwrapped
from esdllm.checkpoints.reading import json_object
from esdllm.checkpoints.stored import Stored, check_dtype, has_weights, open_file, tensors
from esdllm.errors import CheckpointError, brief

__all__ = ["Lora", "base_of", "is_adapter"]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_FACTOR = re.compile(r"(.+)\.lora_(embedding_)?(A|B)(\.\w+)??(\.weight)?")
_SAVED = re.compile(r"\.modules_to_save(\.default)?(?=\.)")
_MERGE = "merge it with PEFT's merge_and_unload(), and save the model"
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal")
_IMPLEMENTED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "init_lora_weights": _PLAIN_STARTS,  # others change the weights that the adapter is added to
    "use_dora": (None, False),
    "use_qalora": (None, False),
    "lora_bias": (None, False),
    "fan_in_fan_out": (None, False),
    "layer_replication": (None, [], ()),
    "alora_invocation_tokens": (None, []),
    "trainable_token_indices": (None, [], {}),
}


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter instead of a model.

    Raises:
        CheckpointError: it holds both.
    """
    if not (folder / _CONFIG).is_file():
        return False
    if has_weights(folder):
        raise CheckpointError(
            f"{folder} holds both a model's weights and an adapter ({_CONFIG}); move the one that you mean to a folder of its own"
        )
    return True


def base_of(adapter: Path) -> str:
    """Return what an adapter names as the model that it was trained on: a folder or a hub id.

    Raises:
        CheckpointError: it names none.
    """
    base = json_object(adapter / _CONFIG).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{adapter / _CONFIG}: base_model_name_or_path = {brief(base)}, where the folder or hub id of the model is needed "
            "that the adapter was trained on; write it there"
        )
    return base


class Lora:
    """An adapter's changes to a model's weights, by the model's names for these.

    Raises:
        CheckpointError: another kind of adapter; or its weights are not the model's.
    """

    changes: Mapping[str, tuple[Tensor, Tensor]]
    """two matrices, (O, r) and (r, I) float32, whose product is added to a weight"""
    replaced: Mapping[str, Stored]
    """weights that take another's place, such as those of `modules_to_save`"""

    def __init__(self, folder: Path, weights: Mapping[str, Stored]) -> None:
        self._folder, self._config = folder, json_object(folder / _CONFIG)
        self._refuse()
        self.replaced = {}
        factors: dict[str, dict[str, Stored]] = {}
        for name, one in self._tensors().items():
            found = _FACTOR.fullmatch(name)
            own = unwrapped(f"{found[1]}.weight" if found else _SAVED.sub("", name), weights)
            if own not in weights:
                raise CheckpointError(f"the adapter in {folder} changes '{own}', which is none of the model's weights")
            check_dtype(one.dtype, f"{one.path.name}: '{one.name}' holds")
            if found:
                factors.setdefault(own, {})[f"{found[2] or ''}{found[3]}"] = one
            else:
                self.replaced[own] = one
        self.changes = {name: self._change(name, two, weights[name].shape) for name, two in factors.items()}

    def _refuse(self) -> None:
        """Refuse what is not implemented, by its key."""
        for key, values in _IMPLEMENTED.items():
            if key in self._config and not any(self._config[key] is one or self._config[key] == one for one in values):
                self._fail(f"{key} = {brief(self._config[key])} is not implemented; {_MERGE}")

    def _tensors(self) -> Mapping[str, Stored]:
        path = self._folder / _WEIGHTS
        if not path.is_file():
            raise CheckpointError(
                f"{self._folder} holds an adapter's config but no {_WEIGHTS}; other formats are not read"
            )
        return tensors(path)

    def _change(self, name: str, two: Mapping[str, Stored], shape: torch.Size) -> tuple[Tensor, Tensor]:
        if set(two) not in ({"A", "B"}, {"embedding_A", "embedding_B"}):
            raise CheckpointError(f"the adapter in {self._folder} has {' and '.join(sorted(two))} alone for '{name}'")
        embedding = "embedding_A" in two
        a, b = (_values(two[f"{'embedding_' if embedding else ''}{side}"]) for side in "AB")
        left, right = (a.t(), b.t()) if embedding else (b, a)
        rank = self._number("r", self._pattern("rank_pattern", name))
        if left.shape != (shape[0], rank) or right.shape != (rank, *shape[1:]):
            raise CheckpointError(
                f"the adapter in {self._folder} has the shapes {tuple(a.shape)} and {tuple(b.shape)} for '{name}', which is "
                f"{tuple(shape)}; with r = {rank:g} they are none of it"
            )
        alpha = self._number("lora_alpha", self._pattern("alpha_pattern", name))
        return left * (alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)), right

    def _pattern(self, key: str, name: str) -> Any:
        """Return the value of a pattern that names the weight's module, by its whole name or its end; None if none does."""
        module, patterns = name.removesuffix(".weight"), self._config.get(key) or {}
        if not isinstance(patterns, Mapping):
            self._fail(f"{key} = {brief(patterns)}, where an object is needed")
        for pattern, value in patterns.items():
            if not re.fullmatch(r"[\w.]+", pattern):
                self._fail(f"{key} has the pattern {brief(pattern)}, where names of modules are read; {_MERGE}")
            if f".{module}".endswith(f".{pattern}"):
                return value
        return None

    def _number(self, key: str, told: Any) -> float:
        value = self._config.get(key) if told is None else told
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            self._fail(f"{key} = {brief(value)}, where a number above 0 is needed")
        return value

    def _fail(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self._folder / _CONFIG}: {what}")


def _values(one: Stored) -> Tensor:
    """Return a factor (., .) in float32."""
    with open_file(one.path) as file:
        values: Tensor = file.get_tensor(one.name).float()
    if values.dim() != 2 or not values.isfinite().all():
        raise CheckpointError(f"{one.path.name}: '{one.name}' is no matrix of finite numbers; download it again")
    return values
