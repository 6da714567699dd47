"""Unmasking policies: how many positions a step commits, and which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import ConfigError, UnmaskingView, option, uniform

Order = Literal["confidence", "margin", "entropy", "random", "sequential"]
_ORDERS: tuple[Order, ...] = ("confidence", "margin", "entropy", "random", "sequential")
_STREAM = 1  # of noise; the sampler draws from stream 0


def order_option() -> Any:
    """Return the option that says which positions are committed first."""
    help = "which come first: highest confidence, margin (first minus second probability), lowest entropy, random or leftmost"
    return option(help, validators.in_(_ORDERS), default="confidence")


def ranking(view: UnmaskingView, order: Order) -> Tensor:
    """Return (B, N), higher is committed earlier."""
    if order == "confidence":
        return view.confidence
    if order == "random":
        return uniform(view.seeds, view.step, view.positions, 1, stream=_STREAM).squeeze(-1)
    if order == "entropy":
        return -entropy(view)
    if order == "sequential":
        return -view.columns.float()
    first, second = view.logits.softmax(-1).topk(2, dim=-1).values.unbind(-1)
    return first - second


def entropy(view: UnmaskingView, temperature: float = 1.0) -> Tensor:
    """Return (B, N) float32, the entropy of each position's distribution at a temperature, in nats."""
    logits = view.logits if temperature == 1 else view.logits / temperature
    log_probability = logits.log_softmax(-1)
    return -(log_probability.exp() * log_probability).nan_to_num(0.0).sum(-1)


def best(view: UnmaskingView, score: Tensor) -> Tensor:
    """Return (B, N) bool: each row's `quota` eligible positions of the highest score (B, N), fewer if there are fewer."""
    score = score.masked_fill(~view.eligible, float("-inf"))
    ordered = score.sort(dim=1, descending=True, stable=True)  # of equal ones the leftmost
    taken = torch.arange(score.shape[1], device=score.device) < view.quota.unsqueeze(1)
    return torch.zeros_like(view.eligible).scatter(1, ordered.indices, taken) & view.eligible


def chosen_or_best(chosen: Tensor, score: Tensor, eligible: Tensor) -> Tensor:
    """Return (B, N) bool, the eligible positions that are chosen; in a row where none is, the one of the highest score."""
    chosen = chosen & eligible
    top = score.masked_fill(~eligible, float("-inf")).argmax(1, keepdim=True)
    first = torch.zeros_like(eligible).scatter(1, top, True)
    return chosen | (first & eligible & ~chosen.any(1, keepdim=True))


def best_or_more(more: Tensor, score: Tensor, eligible: Tensor) -> Tensor:
    """Return (B, N) bool, the eligible positions of `more`, and always the one of the highest score."""
    top = score.masked_fill(~eligible, float("-inf")).argmax(1, keepdim=True)
    return more.scatter(1, top, True) & eligible


def placed(taken: Tensor, order: Tensor, eligible: Tensor) -> Tensor:
    """Return (B, N) bool in the positions' order of `taken` (B, N), which is in that of `order`."""
    return torch.zeros_like(eligible).scatter(1, order, taken) & eligible


def probability_option(default: float, help: str, tune: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)) -> Any:
    """Return an option that is a probability."""
    return option(help, validators.ge(0.0), validators.le(1.0), default=default, tune=tune)


def token_ids(instance: Any, attribute: Any, value: Sequence[int]) -> None:
    """Return if all of an option's values are token ids.

    Raises:
        ValueError: one is not.
    """
    if any(type(token) is not int or token < 0 for token in value):
        raise ValueError(f"{attribute.name} = {list(value)} must be token ids, 0 or more")


class Deciding:
    """What policies share whose number of commits follows from the logits."""

    def counts(self, masked: int, blocks: int) -> None:
        """Return None: the logits decide."""
        return


def spread(masked: int, steps: int) -> tuple[int, ...]:
    """Return `masked` spread evenly over `steps`, the first ones taking one more (LLaDA)."""
    return tuple(masked // steps + (step < masked % steps) for step in range(steps))


def shared_steps(steps: int, blocks: int) -> int:
    """Return the steps of each block."""
    if steps % blocks:
        raise ConfigError(f"unmasking steps = {steps} cannot be shared evenly by {blocks} blocks; give a multiple")
    return steps // blocks


def give_one(**options: int | None) -> None:
    """Return if at most one of some options is given.

    Raises:
        ValueError: more are.
    """
    told = [f"{name} = {value}" for name, value in options.items() if value is not None]
    if len(told) > 1:
        raise ValueError(f"{' and '.join(told)} contradict; give one")


def steps_per_block_option(what: str) -> Any:
    """Return the option of how many steps a block gets, if it is told; `what` goes on about them."""
    return option(f"denoising steps of a block, {what}", validators.optional(validators.ge(1)), default=None)


@attrs.frozen
class TopKUnmasking:
    """A fixed number a step: tokens_per_step, or what a block holds spread evenly over its steps, more at first (LLaDA)."""

    tokens_per_step: int | None = option(
        "positions to commit a step; 1 if no steps are given either",
        validators.optional(validators.ge(1)),
        default=None,
    )
    steps: int | None = option(
        "denoising steps in all, the same number for every block", validators.optional(validators.ge(1)), default=None
    )
    order: Order = order_option()
    steps_per_block: int | None = steps_per_block_option(
        "in place of `steps`; those that would commit nothing are left out"
    )
    spread: Literal["masks", "block"] = option(
        "what is spread over steps_per_block: a block's masks, or all its positions, of which the prompt may hold some (SDAR)",
        validators.in_(("masks", "block")),
        default="masks",
    )

    def __attrs_post_init__(self) -> None:
        give_one(tokens_per_step=self.tokens_per_step, steps=self.steps, steps_per_block=self.steps_per_block)
        if self.spread == "block" and self.steps_per_block is None:
            raise ValueError("spread = block says what is spread over steps_per_block; give that too")

    def counts(self, masked: int, blocks: int) -> tuple[int, ...]:
        """Return tokens_per_step until all are committed, or the even schedule."""
        if self.steps_per_block is not None:
            return spread(masked, min(masked, self.steps_per_block))
        if self.steps is None:
            rate = self.tokens_per_step or 1
            return (rate,) * -(-masked // rate)
        return spread(masked, shared_steps(self.steps, blocks))

    def block_counts(self, length: int, blocks: int) -> tuple[int, ...] | None:
        """Return the even schedule of a whole block, if that is what is spread."""
        return self.counts(length, blocks) if self.spread == "block" else None

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the best of the order."""
        return best(view, ranking(view, self.order))


@attrs.frozen
class ThresholdUnmasking:
    """Parallel decoding: every position whose confidence is above the threshold, and always the best one (Fast-dLLM)."""

    threshold: float = probability_option(0.9, "confidence above which a position is committed")
    steps_per_block: int | None = steps_per_block_option(
        "over which its positions are spread evenly, more at first: as many of the best are always committed (SDAR, LLaDA2)"
    )

    def counts(self, masked: int, blocks: int) -> None:
        """Return None: the logits decide."""
        return

    def block_counts(self, length: int, blocks: int) -> tuple[int, ...] | None:
        """Return the even schedule of a whole block, if the steps of one are given."""
        return None if self.steps_per_block is None else spread(length, min(length, self.steps_per_block))

    def select(self, view: UnmaskingView) -> Tensor:
        """Return the confident ones (arXiv 2505.22618, section 3.3), or the quota's best."""
        confident = view.confidence > self.threshold
        if self.steps_per_block is None:
            return chosen_or_best(confident, view.confidence, view.eligible)
        return (confident & view.eligible) | best(view, view.confidence)
