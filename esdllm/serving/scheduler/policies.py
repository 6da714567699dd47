"""Which rows go first. A policy names a form, and all rows of that form make their next steps as one.

Each says how many steps of others a row may see before its own. The proofs share one remark. Put the rows in order: who has
waited longer stands first, of equals who was admitted first. A row that makes its step has waited for none, and so has a row
that is admitted; both stand behind everyone who has seen a step of others. So after one step, no row gets before another any
more: those ahead of a row can only become fewer, and a step of the first row in this order makes them so by at least one.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import attrs
from attrs import validators

from esdllm.config.options import option
from esdllm.serving.scheduler.rows import Ready

__all__ = ["POLICIES", "OldestFirst", "Policy", "RefreshesTogether", "WidestFirst"]


class Policy(Protocol):
    """Chooses the next step. A frozen attrs class, whose fields are its options."""

    def choose(self, rows: Sequence[Ready]) -> Hashable:
        """Return the form of one of the rows, of which there is at least one: all rows of that form go."""
        ...

    def bound(self, slots: int) -> int:
        """Return the most steps of others that a row of so many slots sees between its admission or step, and its next step."""
        ...


def oldest(rows: Iterable[Ready]) -> Ready:
    """Return the row that has waited longest; of equals, the one that was admitted first."""
    return min(rows, key=lambda row: (-row.waited, row.admission))


def widest(rows: Collection[Ready]) -> Hashable:
    """Return the form of most rows; of equals, that of the row that has waited longest."""
    groups: dict[Hashable, list[Ready]] = {}
    for row in rows:
        groups.setdefault(row.form, []).append(row)
    return oldest(oldest(group) for group in groups.values() if len(group) == max(map(len, groups.values()))).form


def _patience(default: int) -> Any:
    return option("steps of others that a row sees before it goes first", validators.ge(0), default=default)


@attrs.frozen
class OldestFirst:
    """The row that has waited longest goes, and all that can go with it.

    A row sees at most S - 1 steps of others, S the number of slots: at most S - 1 rows stand before it, and each step is one
    of the first, which removes it. Rows of as many forms as slots reach it.
    """

    def choose(self, rows: Sequence[Ready]) -> Hashable:
        """Return the form of the row that has waited longest."""
        return oldest(rows).form

    def bound(self, slots: int) -> int:
        """Return the number of other slots."""
        return slots - 1


@attrs.frozen
class WidestFirst:
    """Most rows go together, unless one has run out of patience: then that one, and all that can go with it.

    A row sees at most max(S - 1, S - 3 + p) steps of others, p its patience and S > 2 the number of slots. If all of the first p
    were of one row, each was of the first (also where nobody was out of patience, for of equal groups the first row's goes): that
    is `OldestFirst`. If one was of several, those have not waited for p steps when the row itself has, so only S - 3 rows can
    stand before it; from then on each step is one of the first, which removes it. Both numbers are reached.
    """

    patience: int = _patience(4)

    def choose(self, rows: Sequence[Ready]) -> Hashable:
        """Return the form of most rows, or of the row that has waited longest if that is out of patience."""
        first = oldest(rows)
        return first.form if first.waited >= self.patience else widest(rows)

    def bound(self, slots: int) -> int:
        """Return the number of other slots, or what patience makes of it; see the class."""
        return slots - 1 + (max(0, self.patience - 2) if slots > 2 else 0)


@attrs.frozen
class RefreshesTogether:
    """Rows that refresh wait for those that are behind them, and these for them, so that all come to refresh at once.

    A refresh that only canvases of one length could share goes at once, for who waits there hardly ever gains company. Else rows
    refresh every so many of their own steps. One that is about to waits for those that have not refreshed since it began to
    wait; those that have are ahead, and wait for it. So rows that were admitted at different times come into step, and then share
    nearly all steps. One that is out of patience goes first, with all that can go with it.

    A row sees at most max(p, 1) + S - 2 steps of others, p its patience and S > 1 the number of slots: when it has seen p >= 1 of
    them, only rows that have seen as many stand before it, and whoever made the step just now is not among them; from then on
    each step is one of the first, which removes it. Where one row never refreshes, and all others do, apart from each other, it
    is reached.
    """

    patience: int = _patience(8)

    def choose(self, rows: Sequence[Ready]) -> Hashable:
        """Return the form of a refresh that goes at once, else of most rows behind a refresh, else of most that refresh."""
        first = oldest(rows)
        if first.waited >= self.patience:
            return first.form
        if lonely := [row for row in rows if row.refreshes and not row.shared]:
            return oldest(lonely).form
        refreshing = [row for row in rows if row.refreshes]
        if not refreshing:
            return widest(rows)
        waited = max(row.waited for row in refreshing)
        behind = [row for row in rows if not row.refreshes and (row.refreshed is None or row.refreshed >= waited)]
        return widest(behind or refreshing)

    def bound(self, slots: int) -> int:
        """Return what the patience adds up to; see the class."""
        return 0 if slots == 1 else max(self.patience, 1) + slots - 2


POLICIES: Mapping[str, type[Any]] = {
    "oldest": OldestFirst,
    "widest": WidestFirst,
    "refreshes-together": RefreshesTogether,
}
"""The policies by the names that commands take."""
