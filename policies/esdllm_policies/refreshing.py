"""Refresh policies: which positions each step computes, and when nothing is skipped."""

from __future__ import annotations

import attrs
from attrs import validators

from esdllm import Moment, Scope, Window


@attrs.frozen
class EveryStepRefresh:
    """Vanilla decoding: the whole canvas, every step."""

    def scope(self, moment: Moment) -> Scope:
        """Return the canvas."""
        return Scope(Window.CANVAS, refresh=True)


@attrs.frozen
class PrefixCacheRefresh:
    """Fast-dLLM's prefix cache: the canvas at a block's first step, then from the block to the end."""

    def scope(self, moment: Moment) -> Scope:
        """Return the canvas or the suffix (arXiv 2505.22618)."""
        return Scope(Window.SUFFIX if moment.step_in_block else Window.CANVAS, refresh=not moment.step_in_block)


@attrs.frozen
class DualCacheRefresh:
    """Fast-dLLM's dual cache: the canvas at a block's first step, then the block alone."""

    def scope(self, moment: Moment) -> Scope:
        """Return the canvas or the block (arXiv 2505.22618)."""
        return Scope(Window.BLOCK if moment.step_in_block else Window.CANVAS, refresh=not moment.step_in_block)


def _period(default: int, help: str, tune: tuple[int, ...]) -> int:
    field: int = attrs.field(default=default, validator=validators.ge(1), metadata={"help": help, "tune": tune})
    return field


@attrs.frozen
class PeriodicRefresh:
    """ES-dLLM's: the block in full every block_refresh steps, the prompt too every prompt_refresh steps."""

    prompt_refresh: int = _period(
        64, "steps between two refreshes of everything up to the block's end", (16, 32, 64, 128, 256)
    )
    block_refresh: int = _period(16, "steps between two refreshes of the block", (2, 4, 8, 16, 32, 64))

    def scope(self, moment: Moment) -> Scope:
        """Return the canvas at first, then prefix, block, or what was committed last and the block."""
        prompt = moment.step % self.prompt_refresh == 0
        if moment.step == 0:
            window = Window.CANVAS
        elif prompt:
            window = Window.PREFIX
        else:
            window = Window.BLOCK if moment.step_in_block else Window.TRAIL
        return Scope(window, refresh=prompt or moment.step % self.block_refresh == 0)
