"""Skip schedules: how many positions each layer hands on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import attrs

PUBLISHED = ((0.0, 1.0), (0.125, 0.5), (0.25, 0.25))
"""ES-dLLM's published keep ratios by depth; they leave about 40 % of the layer work."""


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
    if any(a < b for a, b in pairwise(ratios)):
        raise ValueError(
            f"ratios {ratios} grow with depth; a position that was dropped cannot come back, so they may only fall"
        )


@attrs.frozen
class DepthSkip:
    """Keep ratios by depth, as published: [[depth, ratio], ...], depth as a share of the layers."""

    keep: Sequence[Sequence[float]] = attrs.field(
        default=PUBLISHED,
        converter=_ratios,
        validator=_check,
        metadata={"help": "from which depth on which share of the window is kept", "tune": _tried},
    )

    def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
        """Return max(floor(ratio * window), min(committed + 2, block)) for each layer, never growing."""
        least = min(committed + 2, block)
        ratios = [max((d, r) for d, r in self.keep if layer >= d * n_layers)[1] for layer in range(n_layers)]
        counts = (min(window, max(int(ratio * window), least)) for ratio in ratios)
        return tuple(accumulate(counts, min))
