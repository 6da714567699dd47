"""In which dtype a model is loaded: as it is asked for, else as its config says, else as its weights are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from esdllm.checkpoints.finding import hub_sizes
from esdllm.checkpoints.placing import DTYPES, resolve_dtype
from esdllm.checkpoints.stored import SERVED, check_dtype, stored_sizes
from esdllm.errors import CheckpointError, brief
from esdllm.processor import multiplies_bfloat16

__all__ = ["bfloat16_is_slow", "choose_dtype", "told_dtype"]

_KEYS = ("torch_dtype", "dtype")  # of transformers 4 and 5


def choose_dtype(
    asked: str | torch.dtype | None, config: Mapping[str, Any], weights: Path | str | None = None
) -> torch.dtype:
    """Return the dtype to load a model in; where nobody says, that of most bytes of the weights, float32 without any.

    `weights` is the folder that holds them, or the hub's id of a model whose weights are not here.

    "auto" is as if nothing were said, as transformers has it.

    Raises:
        UnavailableError: what is asked for is none that a model computes in.
        CheckpointError: what the config says is none; or the weights cannot be read.
    """
    if asked not in (None, "auto"):
        return resolve_dtype(asked)
    told = told_dtype(config)
    if told is not None or weights is None:
        return told or torch.float32
    return main_dtype(weights, hub_sizes(weights) if isinstance(weights, str) else stored_sizes(weights))


def told_dtype(config: Mapping[str, Any]) -> torch.dtype | None:
    """Return the dtype that a config.json names; None if it leaves that to the weights.

    Raises:
        CheckpointError: it is none that a model computes in, or its two keys differ.
    """
    told = {key: _named(key, config[key]) for key in _KEYS if config.get(key) not in (None, "auto")}
    if len(set(told.values())) > 1:
        both = " and ".join(f"{key} = {brief(config[key])}" for key in told)
        raise CheckpointError(f"config.json: {both} differ; pass dtype to load in one of them")
    return next(iter(told.values()), None)


def bfloat16_is_slow(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a dtype is bfloat16 on a CPU that has no fast products of it; float32 is several times faster there."""
    return device.type == "cpu" and dtype == torch.bfloat16 and not multiplies_bfloat16()


def main_dtype(weights: Path | str, sizes: Mapping[str, int]) -> torch.dtype:
    """Return the dtype of most bytes, from the bytes in each; float32 if there are none.

    Raises:
        CheckpointError: it is none that a model computes in.
    """
    most = max(sizes, key=lambda dtype: (sizes[dtype], dtype), default="F32")
    if most not in SERVED:
        check_dtype(most, f"most of the weights in {weights} are")
        raise CheckpointError(f"the weights in {weights} are {most}; pass dtype: {', '.join(DTYPES)}")
    return SERVED[most]


def _named(key: str, value: Any) -> torch.dtype:
    name = str(value).removeprefix("torch.") if isinstance(value, (str, torch.dtype)) else ""
    if name not in DTYPES:
        raise CheckpointError(
            f"config.json: {key} = {brief(value)}, where {', '.join(DTYPES)} or auto is needed; pass dtype to load it in one"
        )
    return DTYPES[name]
