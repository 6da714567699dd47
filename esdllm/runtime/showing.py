"""What observers are shown of rows in slots: read from the device at once, a record for each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from esdllm.errors import InputError
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.seats import Seat
from esdllm.runtime.sharing import sent
from esdllm.views import StepRecord

__all__ = ["shown"]


def shown(home: Canvas, seats: Sequence[Seat]) -> dict[int, StepRecord]:
    """Return by slot what the last steps of some rows made, each as a batch of one row without its padding.

    Raises:
        InputError: a row has made no step yet.
    """
    if not seats:
        return {}
    index = sent([seat.slot for seat in seats], home.tokens.device)
    revoked, edited = (torch.zeros_like(home.committed) if x is None else x for x in (home.revoked, home.edited))
    whole = [home.tokens, *(home.by_column(x) for x in (home.committed, home.guess, revoked, edited))]
    numbers = torch.stack([x.index_select(0, index).long() for x in whole]).cpu()
    sure = torch.stack(
        [x.index_select(0, index) for x in (home.confidence, home.by_column(home.guess_confidence))]
    ).cpu()
    return {seat.slot: _record(home, seat, numbers[:, i : i + 1], sure[:, i : i + 1]) for i, seat in enumerate(seats)}


def _record(home: Canvas, seat: Seat, numbers: Tensor, sure: Tensor) -> StepRecord:
    """Return a row's record of what was read of it, (5, 1, L) and (2, 1, L)."""
    if seat.made is None:
        raise InputError(f"the row in slot {seat.slot} has made no step yet")
    made, room = seat.made, seat.room
    tokens, committed, guess, revoked, edited = numbers[:, :, room : seat.span.stop].unbind()
    confidence, guess_confidence = sure[:, :, room : seat.span.stop].unbind()
    return StepRecord(
        made.moment,
        made.block._replace(start=made.block.start - room, stop=made.block.stop - room),
        made.plan,
        tokens,
        committed.bool(),
        confidence,
        None if home.revoked is None else revoked.bool(),
        guess=guess,
        guess_confidence=guess_confidence,
        edited=None if home.edited is None else edited.bool(),
    )
