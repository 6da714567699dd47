"""Refresh policies: which positions each step computes, and when nothing is skipped."""

from __future__ import annotations

import attrs
from attrs import validators

from esdllm import ConfigError, Moment, Scope, Window


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


@attrs.frozen
class OnCommitRefresh:
    """A refresh at a block's first step, and whenever enough was committed since the last one.

    What makes a cache stale is what was decided since it was written, not the steps that took (dKV-Cache, arXiv
    2505.15781, and EntropyCache, arXiv 2603.18489, tie recomputing to decoding). The number is the sum over the steps of
    the most that a row committed.
    """

    commits: int = _period(8, "positions committed since the last refresh that ask for another", (4, 8, 16, 32))
    prompt: bool = attrs.field(
        default=True, metadata={"help": "whether a refresh computes the prompt too, not just the block"}
    )

    def scope(self, moment: Moment) -> Scope:
        """Return the canvas at first, everything up to the block's end at its first step, then the block.

        Raises:
            ConfigError: the number committed is known on the device only.
        """
        if moment.step_in_block == 0:
            return Scope(Window.PREFIX if moment.step else Window.CANVAS, refresh=True)
        if moment.unrefreshed is None:
            raise ConfigError(
                "refresh 'on-commit' counts what is committed, which here only the device knows: several positions a "
                "step, some of which may not be alive or, with delay_eos, not yet be allowed. Commit one a step "
                '(unmasking.tokens_per_step = 1), or as the logits decide (such as unmasking = "threshold"); or set '
                'delay_eos = false and skip = "none"'
            )
        refresh = moment.unrefreshed >= self.commits
        return Scope(Window.PREFIX if refresh and self.prompt else Window.BLOCK, refresh)
