"""All planning: which positions each step computes, how many each layer keeps, how many a row commits.

Host integers only; imports no torch. A run is walked step by step. What the plan of the next step does not need to know is
never asked for: with one token a step, nothing is read back from the device until the answer is complete.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol

import attrs

from esdllm.errors import ConfigError
from esdllm.plan import Block, Facts, Layout, Moment, Phase, Scope, Step, StepPlan, Window

__all__ = ["Planner", "Planners"]


class _Skip(Protocol):
    def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]: ...


class _Refresh(Protocol):
    def scope(self, moment: Moment) -> Scope: ...


class _Blocks(Protocol):
    def next_block(self, start: int, end: int, block_length: int) -> Block: ...


class _Unmasking(Protocol):
    def counts(self, masked: int, blocks: int) -> tuple[int, ...] | None: ...


class _Store(Protocol):
    @property
    def persistent(self) -> bool: ...

    def phase(self, step_in_block: int) -> Phase: ...


@attrs.frozen
class Planners:
    """The host half of the components that plan."""

    skip: _Skip
    refresh: _Refresh
    blocks: _Blocks
    unmasking: _Unmasking
    store: _Store


@attrs.frozen
class _Quota:
    """A block, its masks in each row, and how many each of its steps may commit in each row."""

    number: int
    block: Block
    masked: tuple[int, ...]
    counts: tuple[tuple[int, ...], ...] | None
    """by step and row; None if that depends on the logits"""
    limit: int = attrs.field(init=False)
    """the most that a row commits at one step"""
    planned: tuple[int, ...] = attrs.field(init=False)
    """for every planned step, the most that a row commits if all went as planned"""

    @limit.default
    def _limit(self) -> int:
        return len(range(*self.block)) if self.counts is None else max(1, *(max(row) for row in self.counts))

    @planned.default
    def _planned(self) -> tuple[int, ...]:
        left, found = self.masked, []
        for counts in self.counts or ():
            found.append(max(map(min, counts, left)))
            left = tuple(max(0, rest - count) for rest, count in zip(left, counts, strict=True))
        return tuple(found)

    def at(self, step_in_block: int) -> tuple[int, ...]:
        """Return the rows' counts at a step; past the plan's end, what is left is committed at the last rate."""
        if self.counts is None:
            return (0,) * len(self.masked)
        if step_in_block < len(self.counts):
            return self.counts[step_in_block]
        return tuple(max(1, count) for count in self.counts[-1])

    def committed(self, step_in_block: int, certain: bool) -> range:
        """Return the numbers of positions that a step may commit, largest over the rows; `certain` if as planned."""
        if self.counts is None or not certain:
            return range((self.limit if self.counts is None else max(self.at(step_in_block))) + 1)
        return range(self.planned[step_in_block], self.planned[step_in_block] + 1)


class _Previous:
    """What is known of the step before: without asking, or by asking once."""

    def __init__(self, read: Callable[[], Facts]) -> None:
        self._read = read
        self._facts: Facts | None = None
        self.block: Block | None = None
        self.committed: range = range(1)
        """the numbers of positions that it may have committed"""
        self._unrefreshed: int | None = 0

    def note(self, block: Block, committed: range, refresh: bool) -> None:
        """Take a step that is about to be made."""
        self._unrefreshed = 0 if refresh else self.unrefreshed
        self.block, self.committed, self._facts = block, committed, None

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
        """Ask the device, once a step."""
        if self._facts is None:
            self._facts = self._read()
        return self._facts


@attrs.define(eq=False)
class Planner:
    """Plans one run over one canvas."""

    planners: Planners
    layout: Layout
    n_layers: int
    block_length: int
    delay_eos: bool = False
    early_stop: bool = False
    check_every: int = 8
    _memo: dict[tuple[int, int, int], tuple[int, ...]] = attrs.field(factory=dict, init=False, repr=False)

    def walk(self, read: Callable[[], Facts]) -> Iterator[Step]:
        """Yield the steps of the run; each is to be made before the next is asked for.

        `read` returns the facts after the last step made. It is called only between steps, at most once for each, and
        only where what follows depends on its answer.
        """
        previous, step = _Previous(read), 0
        quotas = self.quotas()
        scored = self.skip_layers()
        for quota in quotas:
            step = -(-step // self.block_length) * self.block_length
            step_in_block, certain = 0, True
            while not self._decided(quota, step_in_block, certain, previous):
                if self._stops(step, step_in_block, previous):
                    return
                moment = Moment(step, step_in_block, quota.number, previous.unrefreshed)
                start, plan, refresh = self._plan(moment, quota.block, previous)
                self._check_drops(plan, scored)
                plan = plan._replace(scored=scored, narrow=plan.narrow and self.n_layers - 1 not in scored)
                certain = certain and (quota.limit <= 1 or not (plan.skips or self.delay_eos))
                previous.note(quota.block, quota.committed(step_in_block, certain), refresh)
                yield Step(plan, moment, start, quota.block, quota.at(step_in_block))
                step, step_in_block = step + 1, step_in_block + 1

    def rehearse(self) -> list[Step]:
        """Return the steps of the run as far as they can be told without a device.

        Every step is taken to commit what was planned; one position where the logits decide.
        """
        steps: list[Step] = []
        adaptive = {quota.number: max(quota.masked) for quota in self.quotas() if quota.counts is None}

        def read() -> Facts:
            step, moment = steps[-1], steps[-1].moment
            undecided = moment.step_in_block + 1 < adaptive.get(moment.block, 0)
            committed = 1 if moment.block in adaptive else max(step.counts)
            return Facts(undecided, committed, leftmost=step.block.stop - 1, finished=False)

        for step in self.walk(read):
            steps.append(step)  # noqa: PERF402 - read() looks at the last one
        return steps

    def quotas(self) -> list[_Quota]:
        """Return the blocks that hold a mask in any row, with what their steps commit."""
        masks = self.layout.masks
        position, end = (
            min((row[0] for row in masks if row), default=0),
            max((row[-1] + 1 for row in masks if row), default=0),
        )
        blocks = []
        while position < end:
            block = self.planners.blocks.next_block(position, end, self.block_length)
            if not position <= block.start < block.stop <= end:
                raise ConfigError(
                    f"the block schedule cut {tuple(block)} out of {(position, end)}; a block lies within it"
                )
            blocks.append(block)
            position = block.stop
        found = []
        for number, block in enumerate(blocks):
            masked = [bisect_left(row, block.stop) - bisect_left(row, block.start) for row in masks]
            if any(masked):
                found.append(_Quota(number, block, tuple(masked), self._counts(masked, len(blocks))))
        return found

    def _counts(self, masked: Sequence[int], blocks: int) -> tuple[tuple[int, ...], ...] | None:
        rows = [self.planners.unmasking.counts(number, blocks) if number else () for number in masked]
        if any(row is None for row in rows):
            return None
        planned = [row for row in rows if row is not None]
        for number, row in zip(masked, planned, strict=True):
            if sum(row) < number or any(count < 0 for count in row):
                raise ConfigError(
                    f"the unmasking policy planned {row} for {number} masks; counts are >= 0 and suffice for them"
                )
        steps = max(len(row) for row in planned)
        return tuple(tuple(row[min(step, len(row) - 1)] if row else 0 for row in planned) for step in range(steps))

    def _decided(self, quota: _Quota, step_in_block: int, certain: bool, previous: _Previous) -> bool:
        """Return whether the block is decided, asking the device only if the plan leaves a doubt."""
        if step_in_block == 0 or (quota.counts is not None and step_in_block < len(quota.counts)):
            return False
        return (quota.counts is not None and certain) or not previous.facts().undecided

    def _stops(self, step: int, step_in_block: int, previous: _Previous) -> bool:
        """Return whether every row has ended, looking every `check_every` steps, and where the facts are known anyway."""
        looks = previous.known or step_in_block % self.check_every == 0
        return self.early_stop and step > 0 and looks and previous.facts().finished

    def _plan(self, moment: Moment, block: Block, previous: _Previous) -> tuple[int, StepPlan, bool]:
        """Return the window's first position, the plan but for what the whole run shares, and whether it is a refresh."""
        window, refresh = self.planners.refresh.scope(moment)
        phase = self.planners.store.phase(moment.step_in_block)
        refresh = refresh or phase is Phase.SELECT
        clamped = window is Window.TRAIL and refresh and phase is not Phase.SELECT and previous.block is not None
        start, stop = self._range(window, block, previous, clamped)
        size, length = stop - start, block.stop - block.start
        keep = (size,) * self.n_layers if refresh else self._keep(size, length, previous)
        self._check_store(window, size, keep)
        narrow = keep[-1] == size > length and phase is not Phase.SELECT
        clamped = clamped and start < block.start
        return start, StepPlan(size, length, keep, (), phase, clamped=clamped, narrow=narrow), refresh

    def _range(self, window: Window, block: Block, previous: _Previous, clamped: bool) -> tuple[int, int]:
        start = block.start if window in (Window.BLOCK, Window.SUFFIX, Window.TRAIL) else 0
        if window is Window.TRAIL and previous.block is not None:
            start = min(start, previous.block.start if clamped else previous.facts().leftmost)
        return start, self.layout.length if window in (Window.CANVAS, Window.SUFFIX) else block.stop

    def _keep(self, window: int, block: int, previous: _Previous) -> tuple[int, ...]:
        possible = {self._keep_counts(window, committed, block) for committed in previous.committed}
        return possible.pop() if len(possible) == 1 else self._keep_counts(window, previous.facts().committed, block)

    def _keep_counts(self, window: int, committed: int, block: int) -> tuple[int, ...]:
        key = (window, committed, block)
        if key not in self._memo:
            counts = self.planners.skip.keep_counts(self.n_layers, window, committed, block)
            shrinking = all(a >= b for a, b in pairwise((window, *counts)))
            if len(counts) != self.n_layers or not shrinking or counts[-1] < 1:
                raise ConfigError(
                    f"the skip schedule gave the keep counts {counts} for {self.n_layers} layers and a window of {window}; "
                    "give one a layer, never growing, between 1 and the window"
                )
            self._memo[key] = counts
        return self._memo[key]

    def skip_layers(self) -> tuple[int, ...]:
        """Return the layers that drop positions at any step: where the scored tensor is worth remembering.

        A count is rounded, so a layer may drop at some windows only. Those of a block and of what trails before it are
        looked at one by one, and the canvas.
        """
        found: set[int] = set()
        lengths = {quota.block.stop - quota.block.start for quota in self.quotas()}
        for length in lengths:
            for window in (*range(length, min(2 * length, self.layout.length)), self.layout.length):
                found |= _drops(window, self._keep_counts(window, 0, length))
        return tuple(sorted(found))

    def _check_drops(self, plan: StepPlan, scored: tuple[int, ...]) -> None:
        if plan.skips and (elsewhere := _drops(plan.window, plan.keep).difference(scored)):
            raise ConfigError(
                f"the skip schedule drops positions at layer {min(elsewhere)} of a window of {plan.window}, but not in those "
                f"of one to two blocks nor in the canvas, where it drops at {scored}; only the number may depend on the window"
            )

    def _check_store(self, window: Window, size: int, keep: tuple[int, ...]) -> None:
        if not self.planners.store.persistent and (size < self.layout.length or keep[-1] < size):
            what = "early skipping" if keep[-1] < size else f"a window of '{window.value}'"
            raise ConfigError(f'{what} reads keys that the cache store does not hold; choose cache = "dense"')


def _drops(window: int, counts: Sequence[int]) -> set[int]:
    """Return the layers that hand on fewer positions than they were given."""
    return {layer for layer, (given, kept) in enumerate(pairwise((window, *counts))) if kept < given}
