"""Reading safetensors straight into place.

Every tensor is copied from its file into memory that is already allocated, a few million values at a time. The file is closed
after as many, so that its pages leave memory and no more than those are held twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esdllm.checkpoints.lora import Lora
from esdllm.checkpoints.naming import compare, matched
from esdllm.checkpoints.sizes import Shape, Stated, check_shapes
from esdllm.checkpoints.stored import Stored, check_dtype, open_file, stored
from esdllm.errors import CheckpointError

__all__ = ["Checkpoint", "Shape", "Stated", "compare"]

_CHUNK = 4 * 1024 * 1024  # values read at once


class Checkpoint:
    """The weights in a folder's safetensors: one file, or many with an index.

    `names` are those of all weights that the model has, best with their shapes, which are then compared with the files'
    headers, before any memory is taken; `ignored` may be there too, such as a head that is tied to the
    embedding and was written all the same. Names may be wrapped as training leaves them (`module.`, `_orig_mod.`,
    `base_model.model.`), and begin with `model.` or not. `lora` is the folder of a LoRA adapter, merged as they are read.
    `layers` is how many config.json says there are. An axis or `layers` that is `Stated` is blamed by its key.

    Raises:
        CheckpointError: no weights; a shard is missing or truncated; weights other than `names` are there, or some are not; one
            has another shape, is quantised, or of numbers that are no weights; or the adapter is none of these weights'.
    """

    def __init__(
        self,
        folder: Path,
        names: Collection[str] | Mapping[str, Shape],
        ignored: Collection[str] = (),
        lora: Path | None = None,
        layers: Stated | None = None,
    ) -> None:
        held, shapes = stored(folder), names if isinstance(names, Mapping) else {}
        self._held = {name: held[own] for name, own in matched(str(folder), held, names, ignored, layers).items()}
        check_shapes(self._held, shapes)
        self._lora = None if lora is None else Lora(lora, self._held)
        if self._lora is not None:
            self._held.update(self._lora.replaced)
            check_shapes(self._lora.replaced, shapes)
        for one in self._held.values():
            check_dtype(one.dtype, f"{one.path.name}: '{one.name}' holds")
        self._shard = _Shard()

    def read(self, name: str, slot: Tensor) -> None:
        """Copy a weight into `slot`, a tensor of its shape on any device, converting its dtype.

        Raises:
            CheckpointError: it has another shape than `slot`, or is not finite.
        """
        held = self._held[name]
        if held.shape != slot.shape:
            raise CheckpointError(
                f"{held.path.name}: '{held.name}' has the shape {tuple(held.shape)}, but config.json says {tuple(slot.shape)}"
            )
        change = None if self._lora is None else self._lora.changes.get(name)
        rows = max(1, _CHUNK // max(1, slot[0].numel()))
        with torch.no_grad():
            for first in range(0, len(slot), rows):
                part = slice(first, first + rows)
                self._read(held, slot[part], part, None if change is None else (change[0][part], change[1]))

    def _read(self, held: Stored, slot: Tensor, rows: slice, change: tuple[Tensor, Tensor] | None) -> None:
        """Copy some rows of one tensor, with the product of `change`'s two added."""
        part = self._shard.rows(held, rows, slot.numel())
        if not torch.stack(torch.aminmax(part)).isfinite().all():  # one pass, no copy; NaN is carried along
            raise CheckpointError(
                f"{held.path.name}: '{held.name}' holds values that are not finite; download it again"
            )
        if change is not None:
            part = torch.addmm(part.float(), *change)
        slot.copy_(part)


class _Shard:
    """The file that was read from last, open until it has given `_CHUNK` values, or another is asked for.

    So its pages leave memory; and not every tensor has its file opened, which takes milliseconds where it holds thousands.
    """

    def __init__(self) -> None:
        self._opened, self._path, self._left = ExitStack(), Path(), 0

    def rows(self, held: Stored, rows: slice, values: int) -> Tensor:
        """Return some rows of a tensor, of so many values."""
        if held.path != self._path or values > self._left:
            self._opened.close()
            self._file: Any = self._opened.enter_context(open_file(held.path))
            self._path, self._left = held.path, _CHUNK
        self._left -= values
        found: Tensor = self._file.get_slice(held.name)[rows]
        return found
