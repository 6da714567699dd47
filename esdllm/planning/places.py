"""Where the windows of steps lie, and which cannot be. Host integers only; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import attrs

from esdllm.errors import ConfigError
from esdllm.plan import Block, Layout, Moment, Phase, Window
from esdllm.planning.causal import check_step
from esdllm.planning.past import Past
from esdllm.planning.planners import Planners
from esdllm.planning.quota import Quota

__all__ = ["WindowPlace", "WindowPlaces"]


class WindowPlace(NamedTuple):
    """Where a window lies."""

    start: int | None
    """its first position; None where the device places it"""
    size: int
    """N"""
    clamped: bool = False
    """whether its head repeats the leftmost position committed at the last step"""
    beyond: tuple[int, ...] = ()
    """positions right of the block with which it goes on, where the suffix is pruned"""
    shares: bool = True
    """whether the block lies at the same place of the window in every row"""
    spans: bool = False
    """whether it holds positions of several blocks of attention"""


@attrs.frozen
class WindowPlaces:
    """Places the windows of one run over one canvas."""

    planners: Planners
    layout: Layout

    def of(
        self,
        window: Window,
        refresh: bool,
        quota: Quota,
        phase: Phase,
        past: Past,
        new: Sequence[int],
    ) -> WindowPlace:
        """Return where the window of a step lies.

        Raises:
            ConfigError: it makes no sense with the blocks or the store.
        """
        self._check(window, quota, phase)
        if window is Window.OPEN:
            return WindowPlace(None, past.open, shares=False)
        if quota.within is not None:
            return self._within(window, refresh, quota, quota.within, past)
        if quota.reach is not None:
            if window in (Window.BLOCK, Window.TRAIL):
                return WindowPlace(None, quota.reach + quota.length)
            start, stop = self._range(window, quota.block, self.layout.canvas, past, clamped=False)
            return WindowPlace(start, stop - start, shares=False)
        clamped = window is Window.TRAIL and refresh and phase is not Phase.SELECT and past.block is not None
        block = quota.block
        if window is Window.TOKENS:  # of which the last decides nothing
            block = Block(block.start, min(block.stop + self.layout.logit_shift, self.layout.length))
        start, stop = self._range(window, block, self.layout.canvas, past, clamped)
        clamped = clamped and start < quota.block.start
        if quota.suffix is None:
            return WindowPlace(start, stop - start, clamped=clamped)
        whole = window in (Window.CANVAS, Window.SUFFIX)
        beyond = quota.suffix if whole else tuple(position for position in new if position >= block.stop)
        return WindowPlace(start, block.stop - start + len(beyond), clamped=clamped, beyond=beyond)

    def _within(self, window: Window, refresh: bool, quota: Quota, within: Block, past: Past) -> WindowPlace:
        """Return where the window lies in a block-causal model: in its block of attention.

        The first step there also makes final what lies before and is not yet; each step computes all that is seen where the
        store keeps nothing.
        """
        opens, keeps = past.begun != within, self.planners.store.persistent
        canvas = Block((past.final if opens else within.start) if keeps else 0, within.stop)
        if quota.leads:
            return WindowPlace(canvas.start, within.start - canvas.start, spans=True)
        clamped = window is Window.TRAIL and refresh
        block = Block(quota.block.start, min(quota.block.stop + self.layout.logit_shift, within.stop))
        start, stop = self._range(window, block, canvas, past, clamped)
        return WindowPlace(start, stop - start, clamped=clamped and start < block.start, spans=start < within.start)

    @staticmethod
    def _range(window: Window, block: Block, canvas: Block, past: Past, clamped: bool) -> tuple[int, int]:
        start = canvas.start if window in (Window.CANVAS, Window.PREFIX) else block.start
        if window is Window.TRAIL and past.block is not None:
            start = min(start, past.block.start if clamped else past.facts().leftmost)
        return start, canvas.stop if window in (Window.CANVAS, Window.SUFFIX) else block.stop

    def first_token(self, quota: Quota) -> int:
        """Return the column of a block's first token: the block itself begins where that is decided, if that is in sight."""
        start = quota.block.start
        return start if quota.within is not None and start == quota.within.start else start + self.layout.logit_shift

    def narrowed(self, window: Window, quota: Quota, moment: Moment) -> Quota:
        """Return what a step may decide, which in a window of a block's own tokens is not the first of them.

        Raises:
            ConfigError: that one is undecided, or may be; or each row has a block of its own.
        """
        if window is not Window.TOKENS or quota.leads:
            return quota
        if moment.first_undecided is not False:
            told = "is undecided" if moment.first_undecided else "may be undecided, which only the device knows"
            raise ConfigError(
                f"a window of 'tokens' decides all of a block but its first token, and that one {told}; ask for it where "
                'moment.first_undecided is False, and choose a policy by which the logits decide, such as "threshold", and '
                'blocks = "fixed"'
            )
        block = Block(self.first_token(quota), quota.block.stop)
        return attrs.evolve(quota, block=block, length=block.stop - block.start)

    def check_store(self, window: Window, size: int, keep: tuple[int, ...], quota: Quota) -> None:
        """Refuse a step that reads keys which the cache store does not hold.

        Raises:
            ConfigError: it does.
        """
        seen = self.layout.length if quota.suffix is None else quota.block.stop + len(quota.suffix)
        seen = seen if quota.sight is None else quota.sight
        if not self.planners.store.persistent and (size < seen - self.layout.spare or keep[-1] < size):
            what = "early skipping" if keep[-1] < size else f"a window of '{window.value}'"
            raise ConfigError(f'{what} reads keys that the cache store does not hold; choose cache = "dense"')

    def _check(self, window: Window, quota: Quota, phase: Phase) -> None:
        """Refuse what cannot be planned together."""
        if quota.within is not None:
            check_step(window, phase)
        if phase is not Phase.ALL and (quota.reach is not None or quota.suffix is not None):
            what = "a block for every row" if quota.reach is not None else "a pruned suffix"
            raise ConfigError(
                f'the cache store chooses keys for one whole block, which {what} has not; choose cache = "dense"'
            )
        if window is Window.OPEN and (quota.suffix is not None or phase is not Phase.ALL):
            raise ConfigError(
                "a window of all that is undecided holds positions beyond what is seen; choose blocks without a pruned "
                'suffix, and cache = "dense"'
            )
        if quota.suffix is not None and quota.reach is not None:
            raise ConfigError(
                "a suffix is pruned right of one block, and here every row has its own; choose one of them"
            )
