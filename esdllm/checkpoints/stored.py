"""What a folder's safetensors hold, by their headers: file, dtype and shape of every tensor. No values are read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import attrs
import torch
from safetensors import SafetensorError, safe_open

from esdllm.errors import CheckpointError, brief
from esdllm.parsing import parse_json

__all__ = [
    "INDEX",
    "SERVED",
    "SINGLE",
    "Stored",
    "bits",
    "check_dtype",
    "has_weights",
    "open_file",
    "stored",
    "stored_sizes",
    "tensors",
]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

SERVED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""dtypes that models are computed in, by the names that safetensors has for them; F64 is read too"""

_NAME = 255  # bytes of a file's name at most
_ORIGINAL = "quantised weights are not read: load what they were made from, and pass quantize to hold it in fewer bits"


@attrs.frozen
class Stored:
    """Where one tensor is, and what it is."""

    path: Path
    name: str
    """in its file"""
    dtype: str
    """by the name that safetensors has for it, such as BF16"""
    shape: torch.Size


def bits(dtype: str) -> int:
    """Return the size of a number, by the name that safetensors has for its dtype."""
    told = re.search(r"\d+", dtype)
    return int(told[0]) if told else 8  # BOOL


def check_dtype(dtype: str, what: str) -> None:
    """Refuse numbers that weights are not read in; `what` is the error's beginning.

    Raises:
        CheckpointError: says what would do.
    """
    if dtype not in SERVED and dtype != "F64":
        hint = _ORIGINAL if dtype[0] in "FIU" else "such are not a model's weights"
        raise CheckpointError(f"{what} {dtype}, where F32, BF16, F16 or F64 is needed; {hint}")


def stored(folder: Path) -> dict[str, Stored]:
    """Return the tensors of a checkpoint folder: of one file, or of the shards that its index names for them.

    Raises:
        CheckpointError: no weights, or two sets of them; an index that is none; a shard is missing, damaged, or lacks a tensor.
    """
    index, single = folder / INDEX, folder / SINGLE
    if not index.is_file():
        if not single.is_file():
            raise CheckpointError(
                f"{folder} holds no weights: neither {SINGLE} nor {INDEX}; other formats are not read"
            )
        return tensors(single)
    held = _index(index)
    files = {name: tensors(folder / name) for name in sorted(set(held.values()))}
    if single.is_file() and SINGLE not in files:
        raise CheckpointError(f"{folder} holds two sets of weights, {SINGLE} and those that {INDEX} names; remove one")
    for name, file in held.items():
        if name not in files[file]:
            raise CheckpointError(
                f"{INDEX} says that '{name}' is in {file}, which does not hold it; download both again"
            )
    return {name: files[file][name] for name, file in held.items()}


def tensors(path: Path) -> dict[str, Stored]:
    """Return the tensors of one file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    with open_file(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: Stored(path, name, one.get_dtype(), torch.Size(one.get_shape())) for name, one in slices.items()}


def stored_sizes(folder: Path) -> dict[str, int]:
    """Return how many bytes of a folder's weights are in each dtype.

    Raises:
        CheckpointError: as `stored` does.
    """
    sizes: dict[str, int] = {}
    for one in stored(folder).values():
        sizes[one.dtype] = sizes.get(one.dtype, 0) + one.shape.numel() * bits(one.dtype) // 8
    return sizes


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds weights that `stored` reads."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def open_file(path: Path) -> safe_open:
    """Return an open safetensors file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (FileNotFoundError, ValueError) as error:  # ValueError: a name that no file can have
        raise CheckpointError(f"the shard {path.name} is missing from {path.parent}") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}; download it again") from error


def _index(index: Path) -> Mapping[str, str]:
    """Return the file's name of each tensor."""
    try:
        told = parse_json(index.read_bytes())["weight_map"].items()
    except (LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f'{index} is no weight index: it must hold "weight_map": {{name of a weight: file that holds it}}'
        ) from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{index} is no weight index: {error}") from error
    held = {name: str(file) for name, file in told}
    if outside := sorted(file for file in held.values() if Path(file).name != file or len(file) > _NAME):
        raise CheckpointError(f"{index} names {brief(outside[0], _NAME)}, which is not in its folder")
    return held
