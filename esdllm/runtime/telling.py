"""What planning is told of a canvas: the numbers of each row on the device, and facts made of them on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from esdllm.plan import Drift, Facts

if TYPE_CHECKING:
    from esdllm.runtime.canvas import Canvas

__all__ = ["numbers", "told"]


def numbers(canvas: Canvas, start: int | Tensor, stop: int | Tensor, stop_ids: Tensor) -> Tensor:
    """Return (B, 6), or (B, 8) with drift, what each row's facts are told by; of a batch's, the largest."""
    length, undecided = canvas.columns.shape[0], canvas.undecided_columns()
    looked_for = torch.stack([undecided, canvas.stops(stop_ids, undecided), canvas.committed])
    first_undecided, first_stop, leftmost = canvas.first(looked_for).unbind()
    going_on = (first_stop >= first_undecided) & (first_undecided < length)
    in_block = (canvas.columns >= start) & (canvas.columns < stop)
    first, open_ = canvas.undecided & (canvas.columns == start), canvas.undecided | canvas.committed
    counted = torch.stack([canvas.undecided & in_block, canvas.committed, open_, first]).sum(2)
    if canvas.edits_left is not None:
        counted[0] += canvas.edits_left > 0
    found = torch.stack([length - leftmost, going_on.long(), *counted], 1)
    return found if canvas.drift is None else torch.cat([found.double(), canvas.drift.double()], 1)


def told(canvas: Canvas, numbers: Sequence[float]) -> Facts:
    """Return the facts that numbers tell, 6 or 8 of them."""
    from_end, going_on, undecided, committed, open_, first, *drift = numbers
    leftmost = canvas.columns.shape[0] - int(from_end)
    measured = Drift(drift[0], None if drift[1] < 0 else drift[1]) if drift else None
    return Facts(int(undecided), int(committed), leftmost, not going_on, int(open_), measured, bool(first))
