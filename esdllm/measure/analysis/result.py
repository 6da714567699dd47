"""What an analysis finds. Numbers that do not exist (the correlation of what never varied) are None."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import attrs

__all__ = [
    "Analysis",
    "Concentration",
    "ConfidenceChange",
    "Correlation",
    "Distribution",
    "DriftByAge",
    "LayerCorrelation",
    "Means",
]


def number(value: Any) -> float | None:
    """Return a float, or None for NaN."""
    return None if math.isnan(value) else float(value)


def numbers(values: Any) -> tuple[float | None, ...]:
    """Return an array (n,) as floats, None for NaN."""
    return tuple(number(value) for value in values)


@attrs.frozen
class Distribution:
    """A distribution in a few numbers. Quantiles come from bins 4.7 % wide; below 1e-6 they are 0."""

    count: int
    """values measured"""
    mean: float | None
    q05: float | None
    q25: float | None
    median: float | None
    q75: float | None
    q95: float | None


@attrs.frozen
class ConfidenceChange:
    """|c_t - c_(t-1)| over a population of positions and steps."""

    distribution: Distribution
    share_below: float | None
    """share of the changes below 0.05, the figure that the paper reports"""
    histogram: tuple[int, ...]
    """counts of the changes in bins of 0.01 from 0 to 1"""


@attrs.frozen
class Correlation:
    """How closely two quantities go together, from -1 to 1."""

    pearson: float | None
    """over all positions and steps at once"""
    spearman: float | None
    """of the ranks within a step, then the mean over the steps: whether a step's order of positions is the same"""


@attrs.frozen
class LayerCorrelation:
    """Correlation of a site's variation at layer i (first index) with the hidden state's variation at layer j."""

    pearson: tuple[tuple[float | None, ...], ...]
    spearman: tuple[tuple[float | None, ...], ...]


@attrs.frozen
class Concentration:
    """Share of a step's total change that its most changed positions hold, mean over the steps."""

    top_10: float | None
    """held by the top 10 % of the positions; 0.1 if all changed alike"""
    top_25: float | None
    """held by the top 25 %"""


@attrs.frozen
class Means:
    """Mean change over one group of positions."""

    count: int
    """pairs of positions and steps whose tensors were compared"""
    confidence: float | None
    """mean |c_t - c_(t-1)|"""
    variation: Mapping[str, tuple[float | None, ...]]
    """by site, the mean relative variation of every layer"""


@attrs.frozen
class DriftByAge:
    """Variation of a tensor against what it was `age` steps before: how stale a cache of that age is."""

    site: str
    """hidden, key or value"""
    layers: str
    """first, middle or last: the first quarter of the layers, the last quarter, those between"""
    positions: str
    """prompt; unchanged: answer positions with the same token, or still a mask; committed: decided meanwhile"""
    age: int
    """in steps"""
    distribution: Distribution


@attrs.frozen
class Analysis:
    """What changes between one denoising step and the next."""

    family: str
    """the model's family"""
    n_layers: int
    """its layers"""
    prompts: int
    """prompts decoded"""
    steps: int
    """forward passes recomputed, summed over the prompts"""
    pairs: int
    """consecutive steps compared, summed over the prompts"""
    confidence: Mapping[str, ConfidenceChange]
    """by population: `masked`, positions masked before and after; `block`, those of them in the block being decoded;
    `answer`, all that the prompt did not give"""
    variation: Mapping[str, tuple[Distribution, ...]]
    """by site, every layer's variation of the answer positions"""
    correlation: Mapping[str, tuple[Correlation, ...]]
    """by site and layer, of variation with confidence change, over the masked positions of the block"""
    layer_correlation: Mapping[str, LayerCorrelation]
    """by site, over the answer positions"""
    concentration: Mapping[str, tuple[Concentration, ...]]
    """by site and layer, over the answer positions; under `confidence`, one entry, over the masked ones of the block"""
    kinds: Mapping[str, Means]
    """by kind of position"""
    distances: Mapping[str, Means]
    """by distance, in positions, to the nearest one that was just committed; confidence of the masked positions only"""
    drift: tuple[DriftByAge, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and scalars, as JSON has them."""
        found: dict[str, Any] = _plain(attrs.asdict(self))
        return found


def _plain(value: Any) -> Any:
    """Return a value with lists for tuples."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
