"""Progress on standard error: bars on a terminal, and where it is none, as in a file, a line now and then."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["CountingBar", "Pace", "left"]


class Pace:
    """Says when a line of progress is due: every half a minute, the first at once or after as long."""

    seconds = 30.0

    def __init__(self, at_once: bool = True) -> None:
        self._last = time.monotonic() - at_once * self.seconds

    def due(self) -> bool:
        """Return whether a line is due, which is then taken as printed."""
        now = time.monotonic()
        if now - self._last < self.seconds:
            return False
        self._last = now
        return True


def left(began: float, before: float, share: float) -> str:
    """Return how long work will go on, of which a share is done, and one was when it began; nothing if that says nothing."""
    if share <= before:
        return ""
    seconds = (time.monotonic() - began) * (1 - share) / (share - before)
    return f", about {seconds / 60:.0f} min left" if seconds >= 60 else f", about {seconds:.0f} s left"


class CountingBar(Progress):
    """A bar for each thing that is counted, with the time gone and left, which vanishes at the end.

    Without a terminal that can redraw it is a line of all counts every half a minute, while something is left; the first
    at once, or after as long, by `at_once`.
    """

    def __init__(self, console: Console, at_once: bool = True) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        times = (TimeElapsedColumn(), TimeRemainingColumn())
        self._began: tuple[float, float] | None = None
        self._pace, self._lines = Pace(at_once), not console.is_interactive
        super().__init__(*columns, *times, console=console, transient=True, disable=self._lines)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Count so many more."""
        super().advance(task_id, advance)
        self._tell()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a count, or what it is called; see rich's `Progress.update`."""
        super().update(task_id, **changes)
        self._tell()

    def _tell(self) -> None:
        share = sum(task.completed for task in self.tasks) / max(1, sum(task.total or 0 for task in self.tasks))
        if not self._lines or not 0 < share < 1:
            return
        self._began = self._began or (time.monotonic(), share)
        if self._pace.due():
            counts = ", ".join(f"{task.description}: {task.completed:g} of {task.total or 0:g}" for task in self.tasks)
            self.console.print(f"{counts}{left(*self._began, share)}", style="dim", soft_wrap=True, markup=False)
