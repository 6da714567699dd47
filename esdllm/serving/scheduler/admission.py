"""Which requests take the slots that are free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import attrs

from esdllm.serving.scheduler.rows import Queued, Ready

__all__ = ["ADMISSIONS", "Admission", "InOrder"]


class Admission(Protocol):
    """Chooses who is admitted. A frozen attrs class, whose fields are its options."""

    def admit(self, queue: Sequence[Queued], free: int, rows: Sequence[Ready]) -> Sequence[Queued]:
        """Return whom to admit now beside the `rows` in slots: at most `free` of the queue, which is in the order of arrival.

        Somebody waits, and at least one slot is free.
        """
        ...


@attrs.frozen
class InOrder:
    """A free slot is taken at once, in the order of arrival: nobody is overtaken, and no slot is free while someone waits."""

    def admit(self, queue: Sequence[Queued], free: int, rows: Sequence[Ready]) -> Sequence[Queued]:
        """Return the first `free` of the queue."""
        return queue[:free]


ADMISSIONS: Mapping[str, Callable[[], Admission]] = {"in-order": InOrder}
"""The ways to admit by the names that commands take, at their defaults."""
