"""How many positions each layer hands on, for every window that a run meets. Host integers only; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import attrs

from esdllm.errors import ConfigError
from esdllm.plan import Layout, StepPlan
from esdllm.planning.past import Past
from esdllm.planning.planners import SkipSchedule

__all__ = ["KeepCounts"]


@attrs.define(eq=False)
class KeepCounts:
    """A skip schedule's keep counts, checked, and asked for once each."""

    schedule: SkipSchedule
    n_layers: int
    layout: Layout
    returning: tuple[int, ...] = ()
    """the layers at which the schedule lets positions back in"""
    _known: dict[tuple[int, int, int], tuple[int, ...]] = attrs.field(factory=dict, init=False, repr=False)

    def of(self, window: int, committed: int, block: int) -> tuple[int, ...]:
        """Return the schedule's counts.

        Raises:
            ConfigError: it gave others than it may.
        """
        key = (window, committed, block)
        if key not in self._known:
            counts = self.schedule.keep_counts(self.n_layers, window, committed, block)
            grown = {layer for layer, (a, b) in enumerate(pairwise((window, *counts))) if a < b}
            outside = counts and not (min(counts) >= 1 and max(counts) <= window)
            if len(counts) != self.n_layers or outside or not grown.issubset(self.returning):
                raise ConfigError(
                    f"the skip schedule gave the keep counts {counts} for {self.n_layers} layers and a window of {window}; "
                    "give one per layer, never growing, between 1 and the window; only at layers that it names in "
                    f"`returning`, here {self.returning}, may dropped positions come back"
                )
            if stuck := _drops(window, counts).intersection(self.returning):
                raise ConfigError(
                    f"the skip schedule drops positions of a window of {window} at layer {min(stuck)}, which it names in "
                    "`returning`: what is remembered there is of positions that go on; name layers that drop none"
                )
            self._known[key] = counts
        return self._known[key]

    def next(self, window: int, block: int, past: Past) -> tuple[int, ...]:
        """Return the next step's counts; asks the device what was committed only where that makes a difference."""
        if past.known:
            return self.of(window, past.facts().committed, block)
        possible = {self.of(window, committed, block) for committed in past.committed}
        return possible.pop() if len(possible) == 1 else self.of(window, past.facts().committed, block)

    def in_rows(
        self, start: int | None, window: int, block: int, past: Past
    ) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...] | None]:
        """Return the next step's counts, and each row's own where some have padding in the window that begins at `start`.

        A row's go by what of its window is no padding, as if it were alone. The step's are the most of any row, and no fewer than
        those of a row without padding, so that they are the same whatever the rows; a row with fewer goes on with padding.
        `start` is None where the device places the window.
        """
        if start is None:
            return self.next(window, block, past), None
        padding = [max(0, first - start) for first in self.layout.starts]
        real = [window - (before if before < window else 0) for before in padding]  # all padding: a row that only waits
        if all(size == window for size in real):
            return self.next(window, block, past), None
        rows = tuple(self.next(size, block, past) for size in real)
        if all(min(row) == size for row, size in zip(rows, real, strict=True)):
            return (window,) * len(rows[0]), None
        return tuple(map(max, self.next(window, block, past), *rows)), rows

    def filled(self, own: tuple[int, ...], real: int, window: int, block: int, past: Past) -> tuple[int, ...] | None:
        """Return the counts of a whole block's window for one that keeps `own` of `real` positions, the others being hidden.

        None if hidden positions cannot make up the difference at each layer, where they only become fewer; so where positions
        come back.
        """
        if self.returning:
            return None
        whole = self.next(window, block, past)
        made_up = [count - mine for count, mine in zip((window, *whole), (real, *own), strict=True)]
        return whole if made_up[-1] >= 0 and all(a >= b for a, b in pairwise(made_up)) else None

    def skip_layers(self, blocks: Iterable[int], behind: int = 0) -> tuple[int, ...]:
        """Return the layers that drop positions at any step, where blocks have these lengths.

        Windows may hold as many columns more as lie `behind` the canvas.

        A count is rounded, so a layer may drop at some windows only. Those of a block and of what trails before it are
        looked at one by one, and the canvas; and what is no padding of each.
        """
        found: set[int] = set()
        for length in blocks:
            windows = {*range(length, min(2 * length, self.layout.length + behind + 1)), self.layout.length}
            real = {window - before for window in windows for before in {0, *self.layout.starts} if before < window}
            for size in real:
                found |= _drops(size, self.of(size, 0, length))
        return tuple(sorted(found))

    def check(self, plan: StepPlan, scored: tuple[int, ...]) -> None:
        """Refuse a plan that drops positions at a layer which is not one of `scored`.

        Raises:
            ConfigError: it does.
        """
        if plan.skips and (elsewhere := _drops(plan.window, plan.keep).difference(scored)):
            raise ConfigError(
                f"the skip schedule drops positions at layer {min(elsewhere)} of a window of {plan.window}, but not in those "
                f"of one to two blocks nor in the canvas, where it drops at {scored}; only the number may depend on the window"
            )


def _drops(window: int, counts: Sequence[int]) -> set[int]:
    """Return the layers that hand on fewer positions than they were given."""
    return {layer for layer, (given, kept) in enumerate(pairwise((window, *counts))) if kept < given}
