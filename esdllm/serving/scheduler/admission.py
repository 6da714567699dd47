"""Which requests take the slots that are free."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import attrs
from attrs import validators

from esdllm.config.options import option
from esdllm.serving.scheduler.rows import Queued, Ready

__all__ = ["ADMISSIONS", "Admission", "Alike", "AtRefreshes", "InOrder"]


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


@attrs.frozen
class AtRefreshes:
    """In the order of arrival, but only where a row in a slot is about to refresh, as a new row is; or after some steps.

    Nobody is overtaken, and the first of the queue sees at most `patience` steps while a slot is free for it.
    """

    patience: int = option(
        "steps for which a slot stays free at most while somebody waits", validators.ge(0), default=4
    )

    def admit(self, queue: Sequence[Queued], free: int, rows: Sequence[Ready]) -> Sequence[Queued]:
        """Return the first `free` of the queue, or nobody for now."""
        ready = not rows or any(row.refreshes for row in rows) or queue[0].held >= self.patience
        return queue[:free] if ready else ()


@attrs.frozen
class Alike:
    """A free slot is taken at once, first by requests whose canvases are as long as another row's, with which they share more.

    A request is overtaken by at most `overtaking` others: once it was by as many, it is due, and those that are due are admitted
    before all others in the order of arrival. So it waits for no more admissions than there were requests before it when it came,
    and `overtaking` more.
    """

    overtaking: int = option("later requests that are admitted before one at most", validators.ge(0), default=8)

    def admit(self, queue: Sequence[Queued], free: int, rows: Sequence[Ready]) -> Sequence[Queued]:
        """Return one after the other who is due first, else alike first, else first."""
        lengths, waiting, chosen = {row.columns for row in rows}, list(queue), []
        for _ in range(min(free, len(queue))):
            due = (at for at, one in enumerate(waiting) if one.overtaken >= self.overtaking)
            alike = (at for at, one in enumerate(waiting) if one.columns in lengths)
            place = next(due, next(alike, 0))
            chosen.append(waiting[place])
            passed = [one._replace(overtaken=one.overtaken + 1) for one in waiting[:place]]
            waiting = [*passed, *waiting[place + 1 :]]
            lengths.add(chosen[-1].columns)
        return chosen


ADMISSIONS: Mapping[str, Callable[[], Admission]] = {"in-order": InOrder, "at-refreshes": AtRefreshes, "alike": Alike}
"""The ways to admit by the names that commands take, at their defaults."""
