"""Unmasking policies: how many positions a step commits, and which."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import ConfigError, UnmaskingView, option, uniform

Order = Literal["confidence", "margin", "entropy", "random"]
_ORDERS: tuple[Order, ...] = ("confidence", "margin", "entropy", "random")
_STREAM = 1  # of noise; the sampler draws from stream 0


def _order() -> Any:
    help = "which come first: highest confidence, margin (first minus second probability), lowest entropy, or random"
    return option(help, validators.in_(_ORDERS), default="confidence")


def ranking(view: UnmaskingView, order: Order) -> Tensor:
    """Return (B, N), higher is committed earlier."""
    if order == "confidence":
        return view.confidence
    if order == "random":
        return uniform(view.seeds, view.step, view.positions, 1, stream=_STREAM).squeeze(-1)
    if order == "entropy":
        return -entropy(view)
    first, second = view.logits.softmax(-1).topk(2, dim=-1).values.unbind(-1)
    return first - second


def entropy(view: UnmaskingView) -> Tensor:
    """Return (B, N) float32, the entropy of each position's distribution, in nats."""
    log_probability = view.logits.log_softmax(-1)
    return -(log_probability.exp() * log_probability).nan_to_num(0.0).sum(-1)


def best(view: UnmaskingView, order: Order) -> Tensor:
    """Return (B, N) bool: each row's `quota` highest eligible positions, fewer if there are fewer."""
    score = ranking(view, order).masked_fill(~view.eligible, float("-inf"))
    ordered = score.sort(dim=1, descending=True, stable=True)  # of equal ones the leftmost
    taken = torch.arange(score.shape[1], device=score.device) < view.quota.unsqueeze(1)
    return torch.zeros_like(view.eligible).scatter(1, ordered.indices, taken) & view.eligible


def chosen_or_best(chosen: Tensor, score: Tensor, eligible: Tensor) -> Tensor:
    """Return (B, N) bool, the eligible positions that are chosen; in a row where none is, the one of the highest score."""
    chosen = chosen & eligible
    top = score.masked_fill(~eligible, float("-inf")).argmax(1, keepdim=True)
    first = torch.zeros_like(eligible).scatter(1, top, True)
    return chosen | (first & eligible & ~chosen.any(1, keepdim=True))


def _spread(masked: int, steps: int) -> tuple[int, ...]:
    """Return `masked` spread evenly over `steps`, the first ones taking one more (LLaDA)."""
    return tuple(masked // steps + (step < masked % steps) for step in range(steps))


def _per_block(steps: int, blocks: int) -> int:
    """Return the steps of each block."""
    if steps % blocks:
        raise ConfigError(f"unmasking steps = {steps} cannot be shared evenly by {blocks} blocks; give a multiple")
    return steps // blocks


@attrs.frozen
class TopKUnmasking:
    """A fixed number a step: tokens_per_step, or the answer spread evenly over `steps` (LLaDA)."""

    tokens_per_step: int | None = option(
        "positions to commit a step; 1 if steps is not given either",
        validators.optional(validators.ge(1)),
        default=None,
    )
    steps: int | None = option(
        "denoising steps in all, the same number for every block", validators.optional(validators.ge(1)), default=None
    )
    order: Order = _order()

    def __attrs_post_init__(self) -> None:
        if self.tokens_per_step is not None and self.steps is not None:
            raise ValueError(f"tokens_per_step = {self.tokens_per_step} and steps = {self.steps} contradict; give one")

    def counts(self, masked: int, blocks: int) -> tuple[int, ...]:
        """Return tokens_per_step until all are committed, or the even schedule."""
        if self.steps is None:
            rate = self.tokens_per_step or 1
            return (rate,) * -(-masked // rate)
        return _spread(masked, _per_block(self.steps, blocks))

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the best of the order."""
        return best(view, self.order)


@attrs.frozen
class ThresholdUnmasking:
    """Parallel decoding: every position whose confidence is above the threshold, and always the best one (Fast-dLLM)."""

    threshold: float = option(
        "confidence above which a position is committed",
        validators.ge(0.0),
        validators.le(1.0),
        default=0.9,
        tune=(0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
    )

    def counts(self, masked: int, blocks: int) -> None:
        """Return None: the logits decide."""
        return

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the confident ones (arXiv 2505.22618, section 3.3)."""
        return chosen_or_best(view.confidence > self.threshold, view.confidence, view.eligible)


def _in_time(instance: Any, attribute: Any, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{attribute.name} = {value} must be between 0 and 1")


@attrs.frozen
class TimeScheduleUnmasking:
    """Dream's: at step i of `steps` the share 1 - t[i+1] / t[i] of what is left, t falling evenly from 1 to eps."""

    steps: int = option("denoising steps in all, the same number for every block", validators.ge(1), default=256)
    eps: float = option("time at the end", _in_time, default=1e-3)
    order: Order = _order()

    def counts(self, masked: int, blocks: int) -> tuple[int, ...]:
        """Return the schedule; the last step takes what is left."""
        steps = _per_block(self.steps, blocks)
        times = [1 + (self.eps - 1) * step / steps for step in range(steps + 1)]
        found: list[int] = []
        for now, then in zip(times[:-2], times[1:-1], strict=True):
            found.append(int((masked - sum(found)) * (1 - then / now)))
        return (*found, masked - sum(found))

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the best of the order."""
        return best(view, self.order)
