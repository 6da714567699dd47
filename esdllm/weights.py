"""Reading safetensors straight into place.

Every tensor is copied from its file into memory that is already allocated, a few million values at a time, and the file is closed
after each, so that no more than those are held twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from esdllm.errors import CheckpointError, brief
from esdllm.parsing import parse_json

__all__ = ["Checkpoint", "compare"]

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_NAME = 255  # bytes of a file's name at most
_CHUNK = 4 * 1024 * 1024  # values read at once


class Checkpoint:
    """The weights in a folder's safetensors: one file, or many with an index.

    `names` are those of all weights that the model has; `ignored` may be there too, such as a head that is tied to the
    embedding and was written all the same.

    Raises:
        CheckpointError: no weights; a shard is missing or truncated; weights other than `names` are there, or some are not.
    """

    def __init__(self, folder: Path, names: Iterable[str], ignored: Collection[str] = ()) -> None:
        self._files = _files(folder)
        compare(str(folder), self._files, names, ignored)

    def read(self, name: str, slot: Tensor) -> None:
        """Copy a weight into `slot`, a tensor of its shape on any device, converting its dtype.

        Raises:
            CheckpointError: it has another shape than `slot`, or is not finite.
        """
        with torch.no_grad():
            _read(self._files[name], name, slot)


def compare(source: str, found: Iterable[str], wanted: Iterable[str], ignored: Collection[str] = ()) -> None:
    """Refuse weights whose names are not those wanted; `ignored` may be there or not. `source` is what holds them.

    Raises:
        CheckpointError: names what is missing and what is unexpected.
    """
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted) - set(ignored))
    if missing or unexpected:
        parts = [
            f"{what}: {_some(names)}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names
        ]
        raise CheckpointError(
            f"the weights in {source} are not the model's that its config describes; {'; '.join(parts)}"
        )


def _read(path: Path, name: str, slot: Tensor) -> None:
    """Copy one tensor, some rows at a time; the file is closed between, so that its pages leave memory."""
    rows = max(1, _CHUNK // max(1, slot[0].numel()))
    for first in range(0, len(slot), rows):
        with _open(path) as shard:
            held = shard.get_slice(name)
            if (shape := tuple(held.get_shape())) != tuple(slot.shape):
                raise CheckpointError(
                    f"{path.name}: '{name}' has the shape {shape}, but config.json says {tuple(slot.shape)}"
                )
            part = held[first : first + rows]
            if not torch.stack(torch.aminmax(part)).isfinite().all():  # one pass, no copy; NaN is carried along
                raise CheckpointError(f"{path.name}: '{name}' holds values that are not finite; download it again")
            slot[first : first + rows].copy_(part)
            del part, held


def _files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor in the folder."""
    index = folder / _INDEX
    if index.is_file():
        try:
            named = set(map(str, parse_json(index.read_bytes())["weight_map"].values()))
        except (LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f'{index} is no weight index: it must hold "weight_map": {{name of a weight: file that holds it}}'
            ) from error
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{index} is no weight index: {error}") from error
        if outside := sorted(name for name in named if Path(name).name != name or len(name) > _NAME):
            raise CheckpointError(f"{index} names {brief(outside[0], _NAME)}, which is not in its folder")
        shards = {folder / name for name in named}
    elif (folder / _SINGLE).is_file():
        shards = {folder / _SINGLE}
    else:
        raise CheckpointError(f"{folder} holds no weights: neither {_SINGLE} nor {_INDEX}; other formats are not read")
    found = {}
    for path in sorted(shards):
        with _open(path) as shard:
            found.update(dict.fromkeys(shard.keys(), path))
    return found


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (FileNotFoundError, ValueError) as error:  # ValueError: a name that no file can have
        raise CheckpointError(f"the shard {path.name} is missing from {path.parent}") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}; download it again") from error


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
