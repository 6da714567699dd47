"""Skip schedules: how many positions each layer hands on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, Literal

import attrs
from attrs import validators

from esdllm import ConfigError, option

PUBLISHED = ((0.0, 1.0), (0.125, 0.5), (0.25, 0.25))
"""ES-dLLM's published keep ratios by depth; they leave about 40 % of the layer work."""

_ROUNDING = 1e-9  # what a solved ratio may be short of the one meant


def least(committed: int, block: int, window: int, bucket: int = 1) -> int:
    """Return the fewest positions that a skip step hands on: what was just committed and two more (ES-dLLM).

    Rounded up to a multiple of `bucket`.
    """
    return min(-(-(committed + 2) // bucket) * bucket, block, window)


def _bucket() -> Any:
    help = (
        "round up to a multiple of it the number kept for what was just committed; with parallel decoding and compile = true "
        "a larger one means fewer graphs"
    )
    return option(help, validators.ge(1), default=1)


@attrs.frozen
class NoSkip:
    """Every layer hands on all positions."""

    def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
        """Return the window, for every layer."""
        return (window,) * n_layers


def _tried(choose: Callable[[str, Sequence[float]], float]) -> list[list[float]]:
    """Return keep ratios for `esdllm tune`: a share from a depth on, and a smaller one deeper, as published but for numbers."""
    depth, ratio = choose("depth", (0.0625, 0.125, 0.1875, 0.25)), choose("ratio", (0.75, 0.5, 0.375, 0.25, 0.125))
    deeper, less = choose("deeper by", (0.0625, 0.125, 0.25, 0.5)), choose("of that", (1.0, 0.75, 0.5, 0.25))
    return [[0.0, 1.0], [depth, ratio], [depth + deeper, ratio * less]]


def _ratios(value: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    if any(len(pair) != 2 for pair in value):
        raise ValueError(f"'keep' = {value} must be a list of [depth, ratio]")
    return tuple((float(depth), float(ratio)) for depth, ratio in value)


def _check(instance: Any, attribute: Any, value: tuple[tuple[float, float], ...]) -> None:
    depths, ratios = [depth for depth, _ in value], [ratio for _, ratio in value]
    if not value or depths[0] != 0 or any(a >= b for a, b in pairwise(depths)) or depths[-1] >= 1:
        raise ValueError(f"depths {depths} must begin at 0, grow, and stay below 1")
    if any(not 0 < ratio <= 1 for ratio in ratios):
        raise ValueError(f"ratios {ratios} must be above 0 and at most 1")


@attrs.frozen
class DepthSkip:
    """Keep ratios by depth: [[depth, ratio], ...], depth as a share of the layers; where a ratio grows, positions come back.

    As published they fall (ES-dLLM, arXiv 2603.10088, section 4). [[0, 1], [0.25, 0.25], [0.75, 1]] skips in the middle alone.
    """

    keep: Sequence[Sequence[float]] = option(
        "from which depth on which share of the window is kept",
        _check,
        default=PUBLISHED,
        converter=_ratios,
        tune=_tried,
    )
    bucket: int = _bucket()

    def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
        """Return max(floor(ratio * window), min(committed + 2, block)) for each layer."""
        fewest = least(committed, block, window, self.bucket)
        return tuple(max(int(ratio * window), fewest) for ratio in self._ratios(n_layers))

    def returning(self, n_layers: int) -> tuple[int, ...]:
        """Return the layers whose ratio is above that of the layer before."""
        ratios = self._ratios(n_layers)
        return tuple(layer for layer in range(1, n_layers) if ratios[layer] > ratios[layer - 1])

    def _ratios(self, n_layers: int) -> list[float]:
        return [max((d, r) for d, r in self.keep if layer >= d * n_layers)[1] for layer in range(n_layers)]


def _share(default: float, help: str, *tune: float) -> Any:
    return option(help, validators.gt(0.0), validators.le(1.0), default=default, tune=tune or None)


def _depth(default: float, help: str) -> Any:
    return option(help, validators.ge(0.0), validators.le(1.0), default=default)


@attrs.frozen
class DecaySkip:
    """Keep ratios that fall smoothly with depth, along a line or a half cosine, from `first` to `last`.

    ES-dLLM (arXiv 2603.10088) keeps by depth, in two steps; this is the same with as many steps as there are layers.
    A layer that drops positions costs a scoring and a gathering of its own.
    """

    first: float = _share(1.0, "share of the window that is kept up to depth `begin`")
    last: float = _share(0.25, "share that is kept from depth `end` on", 0.5, 0.375, 0.25, 0.125)
    begin: float = _depth(0.0, "depth at which the share begins to fall, as a share of the layers")
    end: float = _depth(0.5, "depth at which it has fallen")
    shape: Literal["cosine", "linear"] = option(
        "cosine or linear", validators.in_(("cosine", "linear")), default="cosine", tune=("cosine", "linear")
    )
    bucket: int = _bucket()

    def __attrs_post_init__(self) -> None:
        if self.first < self.last:
            raise ValueError(f"first = {self.first} and last = {self.last}: shares may only fall with depth")
        if self.begin >= self.end:
            raise ValueError(f"begin = {self.begin} and end = {self.end}: the share falls between them; end is deeper")

    def ratio(self, depth: float) -> float:
        """Return the share kept at a depth in [0, 1]."""
        fallen = min(1.0, max(0.0, (depth - self.begin) / (self.end - self.begin)))
        if self.shape == "cosine":
            fallen = (1 - math.cos(math.pi * fallen)) / 2
        return self.first + (self.last - self.first) * fallen

    def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
        """Return the ratio of each layer in whole positions of the block, as many times as the window holds the block.

        Of a window as long as the block that is floor(ratio * window). Sharing the window out by the block makes the
        layers that drop positions the same for every window.
        """
        fewest = least(committed, block, window, self.bucket)
        shares = [max(1, int(self.ratio(layer / n_layers) * block)) for layer in range(n_layers)]
        return tuple(accumulate((max(share * window // block, fewest) for share in shares), min))


@attrs.frozen
class BudgetSkip:
    """Keep ratios that make a skip step's layer work a given share of that of a step without skipping.

    Solved for in the family of ES-dLLM's published ratios (arXiv 2603.10088): s from depth 1/8 on, s squared from depth
    1/4 on; s = 1/2 is as published. Where the layers before that leave nothing of the budget, both depths move up.
    """

    budget: float = _share(
        0.4, "layer work of a skip step as a share of one without skipping", 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.75
    )
    bucket: int = _bucket()

    def ratios(self, n_layers: int) -> tuple[float, ...]:
        """Return the share that each layer hands on.

        Raises:
            ConfigError: the first layer, which always computes the whole window, is more than the budget.
        """
        if self.budget * n_layers <= 1 < n_layers:
            raise ConfigError(
                f"skip 'budget': budget = {self.budget} of {n_layers} layers is not more than the first one, which "
                f"computes every position; give more than {1 / n_layers:.3f}"
            )
        drop = max(0, min(-(-n_layers // 8), math.ceil(self.budget * n_layers) - 2))  # the first layer that drops
        again = max(drop + 1, min(-(-n_layers // 4), 2 * drop))
        full, once = min(drop + 1, n_layers), max(0, min(again, n_layers - 1) - drop)
        twice, left = n_layers - full - once, self.budget * n_layers - full
        # full + once * s + twice * s**2 = budget * n_layers
        root = math.sqrt(once * once + 4 * twice * left) if left > 0 else 0.0
        s = min(1.0, (root - once) / (2 * twice) if twice else left / once if once else 1.0)
        return tuple(1.0 if layer < drop else s if layer < again else s * s for layer in range(n_layers))

    def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
        """Return floor(ratio * window) for each layer, more where what was just committed asks for it.

        Where both ratios keep equally many positions of a block, the second drop is none, in a longer window neither.
        """
        ratios, fewest = self.ratios(n_layers), least(committed, block, window, self.bucket)
        if len({int(ratio * block + _ROUNDING) for ratio in ratios if ratio < 1}) == 1:
            ratios = tuple(ratio if ratio == 1 else ratios[-1] for ratio in ratios)
        return tuple(max(int(ratio * window + _ROUNDING), fewest) for ratio in ratios)


@attrs.frozen
class AdaptiveSkip:
    """As many positions as the last step's commits call for, rounded up to one of a few sizes, from one depth on.

    That what is worth computing follows the number decoded is FOCUS's observation (arXiv 2601.23278, whose number is a
    multiple of the mean number decoded); the sizes keep shapes, and so compiled plans, few. With one token per step the
    number never changes.
    """

    per_commit: float = option(
        "positions to keep for each that was committed at the last step",
        validators.gt(0.0),
        default=4.0,
        tune=(2.0, 4.0, 8.0),
    )
    sizes: int = option(
        "sizes to round up to: equal parts of the window, the largest the window itself", validators.ge(2), default=4
    )
    begin: float = _depth(0.125, "depth of the layer that drops, as a share of the layers")

    def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
        """Return the window before depth `begin`, and the size after it."""
        wanted = max(self.per_commit * committed, least(committed, block, window))
        number = next(n for n in range(1, self.sizes + 1) if n == self.sizes or -(-window * n // self.sizes) >= wanted)
        size = -(-window * number // self.sizes)
        return tuple(window if layer < self.begin * n_layers else size for layer in range(n_layers))
