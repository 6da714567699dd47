"""Unmasking policies whose steps commit what a published schedule says."""

from __future__ import annotations

import struct
from typing import Any

import attrs
from attrs import validators
from torch import Tensor

from esdllm import UnmaskingView, option
from esdllm_policies.unmasking import (
    Order,
    best,
    entropy,
    give_one,
    order_option,
    ranking,
    shared_steps,
    steps_per_block_option,
)


def _in_time(instance: Any, attribute: Any, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{attribute.name} = {value} must be between 0 and 1")


@attrs.frozen
class TimeScheduleUnmasking:
    """Dream's: at step i of `steps` the share 1 - t[i+1] / t[i] of what is left, t falling evenly from 1 to eps."""

    steps: int = option("denoising steps in all, the same number for every block", validators.ge(1), default=256)
    eps: float = option("time at the end", _in_time, default=1e-3)
    order: Order = order_option()

    def counts(self, masked: int, blocks: int) -> tuple[int, ...]:
        """Return the schedule; the last step takes what is left."""
        steps = shared_steps(self.steps, blocks)
        times = [1 + (self.eps - 1) * step / steps for step in range(steps + 1)]
        found: list[int] = []
        for now, then in zip(times[:-2], times[1:-1], strict=True):
            found.append(int((masked - sum(found)) * (1 - then / now)))
        return (*found, masked - sum(found))

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the best of the order."""
        return best(view, ranking(view, self.order))


def _float32(x: float) -> float:
    """Return x rounded to float32."""
    rounded: float = struct.unpack("f", struct.pack("f", x))[0]
    return rounded


@attrs.frozen
class LinearScheduleUnmasking:
    """Tiny-A2D's: with m of a block's S steps left, the share 1/m of its masks, rounded half to even; no step without one.

    The public sampler (dllm, `MDLMSampler` and `BD3LMSampler`) takes the share from its noise schedule alpha(t) = 1 - t in
    float32, as 1 - (1 - alpha((m - 1) / S)) / (1 - alpha(m / S)): other than 1/m where that makes a half, and so here too.
    """

    steps: int | None = option(
        "denoising steps in all; each block has the same number, rounded up; 256 if steps_per_block is not given either",
        validators.optional(validators.ge(1)),
        default=None,
    )
    steps_per_block: int | None = steps_per_block_option("in place of `steps`")
    order: Order = order_option()

    def __attrs_post_init__(self) -> None:
        give_one(steps=self.steps, steps_per_block=self.steps_per_block)

    def counts(self, masked: int, blocks: int) -> tuple[int, ...]:
        """Return the schedule; the last step takes what is left."""
        steps = self.steps_per_block or -(-(self.steps or 256) // blocks)
        kept = [_float32(1 - _float32(1 - _float32(left / steps))) for left in range(steps + 1)]  # 1 - alpha(t)
        found: list[int] = []
        for left in range(steps, 0, -1):
            share = 1 - _float32(kept[left - 1] / kept[left])
            found.append(round((masked - sum(found)) * share))
        return tuple(filter(None, found))

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the best of the order."""
        return best(view, ranking(view, self.order))


@attrs.frozen
class LowestEntropyUnmasking:
    """RND1's: after step i of N the floor of (N - i) / N of a block's masks are left, those of the highest entropy."""

    steps: int = option(
        "denoising steps in all, the same number for every block; those that would commit nothing are left out",
        validators.ge(1),
        default=256,
    )
    temperature: float = option(
        "what the logits are divided by before the entropy is taken", validators.gt(0.0), default=1.0
    )

    def counts(self, masked: int, blocks: int) -> tuple[int, ...]:
        """Return the schedule."""
        steps = shared_steps(self.steps, blocks)
        left = [masked * (steps - step) // steps for step in range(steps + 1)]
        return tuple(before - after for before, after in zip(left, left[1:], strict=False) if before > after)

    def select(self, view: UnmaskingView) -> Tensor:
        """Return those of the lowest entropy."""
        return best(view, -entropy(view, self.temperature))
