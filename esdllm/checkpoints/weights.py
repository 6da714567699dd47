"""Reading safetensors straight into place.

Every tensor is copied from its file into memory that is already allocated, a few million values at a time, and the file is closed
after each, so that no more than those are held twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

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

    def read(self, name: str, slot: Tensor) -> None:
        """Copy a weight into `slot`, a tensor of its shape on any device, converting its dtype.

        Raises:
            CheckpointError: it has another shape than `slot`, or is not finite.
        """
        with torch.no_grad():
            _read(self._held[name], slot, None if self._lora is None else self._lora.changes.get(name))


def _read(held: Stored, slot: Tensor, change: tuple[Tensor, Tensor] | None) -> None:
    """Copy one tensor, some rows at a time; the file is closed between, so that its pages leave memory.

    To each row of it, the same row of the product of `change`'s two is added.
    """
    if held.shape != slot.shape:
        raise CheckpointError(
            f"{held.path.name}: '{held.name}' has the shape {tuple(held.shape)}, but config.json says {tuple(slot.shape)}"
        )
    rows = max(1, _CHUNK // max(1, slot[0].numel()))
    for first in range(0, len(slot), rows):
        with open_file(held.path) as shard:
            read = shard.get_slice(held.name)
            part = read[first : first + rows]
            if not torch.stack(torch.aminmax(part)).isfinite().all():  # one pass, no copy; NaN is carried along
                raise CheckpointError(
                    f"{held.path.name}: '{held.name}' holds values that are not finite; download it again"
                )
            if change is not None:
                part = torch.addmm(part.float(), change[0][first : first + rows], change[1])
            slot[first : first + rows].copy_(part)
            del part, read
