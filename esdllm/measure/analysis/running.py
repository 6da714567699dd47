"""Statistics that take values a few at a time and keep only sums: their size does not depend on how many came."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from esdllm.measure.analysis.measures import Floats
from esdllm.measure.analysis.result import Distribution, number

__all__ = ["LOG_EDGES", "Averages", "Histogram", "Moments"]

LOG_EDGES = np.logspace(-6, 2, 401)
"""bins of equal ratio (4.7 %), so that a quantile is known to within a few percent at any scale"""


class Histogram:
    """Counts by bin of several series, and their sums.

    Values below the first edge fall into a bin of their own, as do those from the last edge on.
    """

    def __init__(self, series: int, edges: Floats = LOG_EDGES) -> None:
        self.edges = edges
        self.counts = np.zeros((series, len(edges) + 1), dtype=np.int64)
        """(series, bins): below, the bins, above"""
        self._sums = np.zeros(series)

    def add(self, values: Floats, series: slice | int = slice(None)) -> None:
        """Add values (series, n), or values (n,) to one series."""
        values = values.reshape(-1, values.shape[-1]).astype(np.float64)
        bins = self.counts.shape[1]
        found = np.searchsorted(self.edges, values, side="right")
        found += np.arange(len(values))[:, None] * bins
        counts = np.bincount(found.ravel(), minlength=len(values) * bins).reshape(-1, bins)
        self.counts[series] += counts[0] if isinstance(series, int) else counts
        self._sums[series] += values.sum(axis=1)[0] if isinstance(series, int) else values.sum(axis=1)

    def distribution(self, series: int) -> Distribution:
        """Return count, mean and quantiles of a series."""
        count = int(self.counts[series].sum())
        mean = number(self._sums[series] / count) if count else None
        return Distribution(count, mean, *(self.quantile(series, q) for q in (0.05, 0.25, 0.5, 0.75, 0.95)))

    def quantile(self, series: int, q: float) -> float | None:
        """Return a quantile, interpolated within its bin by ratio; 0 below the first edge; None of nothing."""
        counts = self.counts[series]
        if not counts.sum():
            return None
        below = np.cumsum(counts)
        wanted = q * below[-1]
        found = int(np.searchsorted(below, wanted))
        while not counts[found]:
            found += 1
        if found == 0:
            return 0.0
        low, high = self.edges[found - 1], self.edges[min(found, len(self.edges) - 1)]
        part = (wanted - (below[found] - counts[found])) / counts[found]
        return float(low * (high / low) ** part)


class Moments:
    """Pearson's correlation of K series with M others, over all values added. Means and products are merged, not summed raw."""

    def __init__(self, first: int, second: int) -> None:
        self.count = 0
        self._mean = np.zeros(first), np.zeros(second)
        self._square = np.zeros(first), np.zeros(second)
        self._product = np.zeros((first, second))

    def add(self, x: Floats, y: Floats) -> None:
        """Add values x (K, n) and y (M, n)."""
        if not x.shape[1]:
            return
        values = x.astype(np.float64), y.astype(np.float64)
        means = values[0].mean(axis=1), values[1].mean(axis=1)
        centred = values[0] - means[0][:, None], values[1] - means[1][:, None]
        steps = means[0] - self._mean[0], means[1] - self._mean[1]
        new, total = x.shape[1], self.count + x.shape[1]
        weight = self.count * new / total
        self._product += centred[0] @ centred[1].T + weight * np.outer(*steps)
        for side in (0, 1):
            self._square[side][:] += np.square(centred[side]).sum(axis=1) + weight * np.square(steps[side])
            self._mean[side][:] += steps[side] * (new / total)
        self.count = total

    def pearson(self) -> Floats:
        """Return (K, M); NaN where a series did not vary."""
        rounding = [1e-20 * self.count * np.square(mean) for mean in self._mean]
        deviations = [
            np.sqrt(np.where(square > least, square, np.nan))
            for square, least in zip(self._square, rounding, strict=True)
        ]
        return self._product / np.outer(*deviations)


class Averages:
    """Means of arrays of one shape; an entry that is NaN does not count."""

    def __init__(self, *shape: int) -> None:
        self.counts: NDArray[Any] = np.zeros(shape, dtype=np.int64)
        self._sums = np.zeros(shape)

    def add(self, values: Floats) -> None:
        """Add one array."""
        found = np.isfinite(values)
        self.counts += found
        self._sums += np.where(found, values, 0.0)

    def add_by(self, group: NDArray[Any], values: Floats) -> None:
        """Add values (K, n), each to the column (of shape (K, groups)) that group (n,) int names."""
        groups = self.counts.shape[1]
        self.counts += np.bincount(group, minlength=groups)
        for series, row in enumerate(values):
            self._sums[series] += np.bincount(group, weights=row, minlength=groups)

    def means(self) -> Floats:
        """Return the means; NaN where nothing came."""
        return np.where(self.counts > 0, self._sums / np.maximum(1, self.counts), np.nan)
