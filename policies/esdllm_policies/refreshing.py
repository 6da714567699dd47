"""Refresh policies: which positions each step computes, and when nothing is skipped."""

from __future__ import annotations

from typing import Any

import attrs
from attrs import validators

from esdllm import ConfigError, Drift, Moment, Scope, Window, option


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


@attrs.frozen
class SubBlockCacheRefresh:
    """Fast-dLLM v2's sub-block cache: the canvas until the block's first token is decided, then the block's own tokens alone.

    Of a block-causal model's canvas that is the block of attention, of which `blocks` cuts parts: `use_block_cache` of its public
    code (arXiv 2509.26328, section 4.2). A batch computes the canvas until the first token is decided in all rows, as there.
    """

    def scope(self, moment: Moment) -> Scope:
        """Return the canvas or the tokens.

        Raises:
            ConfigError: whether the token is decided is known on the device only, or rows have blocks of their own.
        """
        if moment.first_undecided is None:
            raise ConfigError(
                "refresh 'sub-block-cache' goes by whether a block's first token is decided, which here only the device knows. "
                'Commit as the logits decide, such as by unmasking = "threshold", in blocks that all rows share, such as "fixed"'
            )
        if moment.first_undecided or moment.step == 0:
            return Scope(Window.CANVAS, refresh=True)
        return Scope(Window.TOKENS, refresh=False)


def _period(default: int, help: str, tune: tuple[int, ...]) -> Any:
    return option(help, validators.ge(1), default=default, tune=tune)


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
    prompt: bool = option("whether a refresh computes the prompt too, not just the block", default=True)

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
                "step, some of which may not be alive or, with delay_eos, not yet be allowed. Commit one per step "
                '(unmasking.tokens_per_step = 1), or as the logits decide (such as unmasking = "threshold"); or set '
                'delay_eos = false and skip = "none"'
            )
        refresh = moment.unrefreshed >= self.commits
        return Scope(Window.PREFIX if refresh and self.prompt else Window.BLOCK, refresh)


@attrs.frozen
class PartialRefresh(PeriodicRefresh):
    """`periodic`, but most refreshes of the prompt hand on only what the skip schedule keeps of it.

    dLLM-Cache, arXiv 2506.06295: between its full refreshes it recomputes the share of the positions whose values changed
    most. Here that share is the skip schedule's, and what "most" means is the importance scorer's.
    """

    full: int = _period(4, "of so many refreshes of the prompt, one computes all of it in every layer", (1, 2, 4, 8))

    def scope(self, moment: Moment) -> Scope:
        """Return periodic's scope, where a refresh of the prompt that is not a full one skips."""
        scope, turn = super().scope(moment), moment.step // self.prompt_refresh
        whole = scope.window is not Window.PREFIX or turn % self.full == 0
        return scope._replace(refresh=scope.refresh and whole)


@attrs.frozen
class DelayedRefresh:
    """dKV-Cache: what is undecided is computed at every step; what is decided is computed once more, then cached.

    dKV-Cache-Decode, arXiv 2505.15781. A position's keys and values settle a step after it was decided, because until
    then they were those of a mask: the delay.
    """

    every: int = _period(8, "steps between two refreshes of the canvas", (4, 8, 16, 32, 64))

    def scope(self, moment: Moment) -> Scope:
        """Return the canvas, or what is undecided and what was just decided."""
        refresh = moment.step % self.every == 0
        return Scope(Window.CANVAS if refresh else Window.OPEN, refresh)


@attrs.frozen
class DriftRefresh:
    """Periods that follow the drift that the refreshes themselves find: longer while it stays under the tolerance.

    A refresh computes what the cache holds, so how stale that had become is known for nothing. The next period is the steps
    since the last refresh times tolerance / drift, but at least half and at most twice the period before: drift that grows
    evenly with the steps stays at the tolerance. The block and what is left of it have a period each.
    """

    tolerance: float = option(
        "mean relative change of the cached values that a refresh should find",
        validators.gt(0.0),
        default=0.1,
        tune=(0.025, 0.05, 0.1, 0.2, 0.4),
    )

    @property
    def learned(self) -> tuple[float, ...]:
        """The periods, in steps, of the block and of what is left of it, before anything is known."""
        return (16.0, 64.0)

    def scope(self, moment: Moment) -> Scope:
        """Return the canvas at first, a prefix or a block that is due, the trail at a block's first step, or the block."""
        block, prompt = moment.learned or self.learned
        if moment.since_refresh is None or moment.since_prompt is None:
            return Scope(Window.CANVAS, refresh=True)
        if moment.since_prompt >= prompt:
            return Scope(Window.PREFIX, refresh=True)
        if moment.step_in_block == 0:
            return Scope(Window.TRAIL, refresh=True)
        return Scope(Window.BLOCK, refresh=moment.since_refresh >= block)

    def learn(self, moment: Moment, drift: Drift) -> tuple[float, ...]:
        """Return the periods that would have met the tolerance.

        A new block's first refresh says nothing of the block's period: its positions were never refreshed before.
        """
        block, prompt = moment.learned
        if moment.step_in_block and moment.since_refresh is not None:
            block = self._period(block, moment.since_refresh, drift.block)
        if drift.prompt is not None and moment.since_prompt is not None:
            prompt = self._period(prompt, moment.since_prompt, drift.prompt)
        return block, prompt

    def _period(self, period: float, steps: int, drift: float) -> float:
        """Return the period after which a drift that took so many steps would be the tolerance."""
        wanted = steps * self.tolerance / max(drift, 1e-9)
        return max(1.0, period / 2, min(2 * period, wanted))
