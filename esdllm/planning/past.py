"""What planning knows of the run so far, without asking the device or by asking once. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from esdllm.plan import Block, Facts, Moment, Scope, Window

__all__ = ["Past"]

_PROMPT = (Window.CANVAS, Window.PREFIX)
"""the windows that hold everything left of the block"""


class Past:
    """The step before, and the refreshes before it."""

    def __init__(self, read: Callable[[], Facts], masked: Sequence[int], learned: tuple[float, ...]) -> None:
        self._read = read
        self._facts: Facts | None = None
        self._left = list(masked)
        self._started = [False] * len(masked)
        self._unrefreshed: int | None = 0
        self._steps = self._open = 0
        self._sure = True
        self._seen: set[int] = set()
        self._refreshed: int | None = None
        self._prompt: int | None = None
        self._step: tuple[Moment, Scope] | None = None
        self.learned = learned
        self.block: Block | None = None
        self.final = 0
        """the columns, from the first, whose keys do not change any more; in a block-causal model alone"""
        self.begun: Block | None = None
        """the block of attention whose positions were all computed last; likewise"""
        self.begun_at: tuple[int, ...] = ()
        """the step at which each row's first block began; 0 where it has not"""
        self.committed: range = range(1)
        """the numbers of positions that the step before may have committed"""

    @property
    def refreshed(self) -> tuple[Moment, Scope] | None:
        """The step before, if it was a refresh and not the first step; its caches had something to compare with."""
        return self._step if self._step and self._step[1].refresh and self._steps > 1 else None

    def begin(self, step: int, masked: Sequence[int]) -> None:
        """Take the step at which a block begins that holds so many masks of each row."""
        before = self.begun_at or (0,) * len(masked)
        new = [number and not any_before for number, any_before in zip(masked, self._started, strict=True)]
        self.begun_at = tuple(step if first else at for at, first in zip(before, new, strict=True))
        self._started = [bool(number) or was for number, was in zip(masked, self._started, strict=True)]

    def moment(self, step: int, step_in_block: int, block: int, first_undecided: bool | None) -> Moment:
        """Return when the next step happens."""
        refreshed, prompt = (None if at is None else self._steps - at for at in (self._refreshed, self._prompt))
        return Moment(step, step_in_block, block, self.unrefreshed, refreshed, prompt, self.learned, first_undecided)

    def note(self, moment: Moment, scope: Scope, block: Block, counts: Sequence[int], committed: range) -> None:
        """Take a step that is about to be made: what was asked of it, what each row should commit and what may be."""
        self._unrefreshed = 0 if scope.refresh else self.unrefreshed
        if scope.refresh:
            self._refreshed = self._steps
            self._prompt = self._steps if scope.window in _PROMPT else self._prompt
        last = [min(count, left) for count, left in zip(counts, self._left, strict=True)]
        self._open, self._sure = max(self._left), self._sure and len(committed) == 1
        self._left = [left - count for left, count in zip(self._left, last, strict=True)]
        self._step, self._steps = (moment, scope), self._steps + 1
        self.block, self.committed, self._facts = block, committed, None

    def unseen(self, block: Block, suffix: Sequence[int]) -> tuple[int, ...]:
        """Return those of a block's positions and of the suffix behind it that no step has computed yet."""
        return tuple(position for position in (*range(*block), *suffix) if position not in self._seen)

    def see(self, block: Block, beyond: Sequence[int], within: Block | None, leads: bool) -> None:
        """Take the positions that a step computes: a block, and what lies beyond, or what is `within` a block of attention."""
        if within is not None:
            self.final, self.begun = within.start, self.begun if leads else within
            return
        if beyond or not self._seen.issuperset(range(*block)):
            self._seen.update(range(*block), beyond)

    @property
    def open(self) -> int:
        """The positions undecided or committed at the last step, largest over the rows; asks unless all went as planned."""
        return self._open if self._sure else self.facts().open

    @property
    def unrefreshed(self) -> int | None:
        """What was committed since the last refresh; None if that is not known without asking."""
        if self._unrefreshed is None or not (self.known or len(self.committed) == 1):
            return None
        return self._unrefreshed + (self.facts().committed if self.known else self.committed[0])

    @property
    def known(self) -> bool:
        """Whether the device was asked since the step."""
        return self._facts is not None

    def facts(self) -> Facts:
        """Ask the device, once per step."""
        if self._facts is None:
            self._facts = self._read()
        return self._facts
