"""Adds up what changed, row by row and step by step, into statistics whose size does not grow."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from esdllm.measure.analysis.measures import Floats, midranks, pearson, top_share
from esdllm.measure.analysis.replay import AGES, Sites, StepChange
from esdllm.measure.analysis.result import (
    Analysis,
    Concentration,
    ConfidenceChange,
    Correlation,
    DriftByAge,
    LayerCorrelation,
    Means,
    number,
    numbers,
)
from esdllm.measure.analysis.running import Averages, Histogram, Moments
from esdllm.measure.analysis.trajectory import GIVEN, KINDS
from esdllm.views import ModelSpec

__all__ = ["DISTANCES", "GROUPS", "Tally"]

SITES = Sites._fields
GROUPS = ("first", "middle", "last")
"""the first quarter of the layers, those between, the last quarter"""
DISTANCES = ("0", "1", "2", "3", "4", "5-8", "9-16", "17-32", "33-64", "65-128", "129+")
"""distances to what was just committed, in positions"""
_DISTANCE_EDGES = (1, 2, 3, 4, 5, 9, 17, 33, 65, 129)
_AGED_SITES, _AGED_POSITIONS = ("hidden", "key", "value"), ("prompt", "unchanged", "committed")
_POPULATIONS = ("block", "masked", "answer")
_SMALL = 0.05
_FLOOR = 1e-6
"""a variation below this is float32's rounding, which depends on the batch, and counts as none"""
_LEAST = 8
"""a step with fewer positions gives no rank correlation and no concentration"""


def layer_groups(n_layers: int) -> NDArray[Any]:
    """Return for every layer its index into GROUPS: (n_layers,) int64."""
    layers = np.arange(n_layers)
    return np.select([layers * 4 < n_layers, (n_layers - 1 - layers) * 4 < n_layers], [0, 2], 1)


class Tally:
    """The statistics of an analysis in the making."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec, layers = spec, spec.n_layers
        series = len(SITES) * layers
        self._groups = layer_groups(layers)
        self.pairs = 0
        """pairs of steps that were added"""
        self._confidence = Histogram(len(_POPULATIONS))
        self._confidence_bins = Histogram(len(_POPULATIONS), np.linspace(0, 1, 101))
        self._small = np.zeros(len(_POPULATIONS), dtype=np.int64)
        self._variation = Histogram(series)
        self._with_confidence = Moments(series, 1)
        self._ranks_with_confidence = Averages(series, 1)
        self._with_hidden = Moments(series, layers)
        self._ranks_with_hidden = Averages(series, layers)
        self._top, self._top_confidence = Averages(series, 2), Averages(1, 2)
        self._kinds, self._confidence_kinds = Averages(series, len(KINDS)), Averages(1, len(KINDS))
        self._distances, self._confidence_distances = Averages(series, len(DISTANCES)), Averages(1, len(DISTANCES))
        self._drift = Histogram(len(_AGED_SITES) * len(GROUPS) * len(_AGED_POSITIONS) * len(AGES))

    def add(self, change: StepChange) -> None:
        """Add one row between two steps."""
        self.pairs += 1
        variation = _floored(change.variation).reshape(-1, change.variation.shape[-1])  # (series, L)
        confidence = np.abs(change.confidence[1] - change.confidence[0])  # (L,)
        answer = change.row.committed_at != GIVEN
        answered = answer & np.isfinite(confidence)
        masked = answered & (change.row.committed_at >= change.state)
        kinds = change.row.kinds(change.state)
        block = masked & (kinds == KINDS.index("masked, in block"))
        self._add_confidence([confidence[where] for where in (block, masked, answered)])
        self._add_answer(variation[:, answer])
        columns = np.flatnonzero(block)
        self._add_pair(variation[:, columns - self._spec.logit_shift], confidence[None, columns])
        self._add_kinds(kinds, variation, confidence)
        self._add_distances(change, variation, confidence, masked)
        for age, stale in change.stale.items():
            self._add_drift(change, age, _floored(stale))

    def _add_confidence(self, populations: list[Floats]) -> None:
        for number_, values in enumerate(populations):
            self._confidence.add(values, number_)
            self._confidence_bins.add(values, number_)
            self._small[number_] += (values < _SMALL).sum()

    def _add_answer(self, variation: Floats) -> None:
        """Add the variation (series, n) of the answer positions."""
        hidden = variation[: self._spec.n_layers]
        self._variation.add(variation)
        self._with_hidden.add(variation, hidden)
        if variation.shape[1] >= _LEAST:
            ranks = midranks(variation)
            self._ranks_with_hidden.add(pearson(ranks, ranks[: self._spec.n_layers]))
            self._top.add(_tops(variation))

    def _add_pair(self, variation: Floats, confidence: Floats) -> None:
        """Add variation (series, n) and confidence change (1, n) of the positions that decide the block's masked columns."""
        self._with_confidence.add(variation, confidence)
        if confidence.shape[1] >= _LEAST:
            self._ranks_with_confidence.add(pearson(midranks(variation), midranks(confidence)))
            self._top_confidence.add(_tops(confidence))

    def _add_kinds(self, kinds: NDArray[Any], variation: Floats, confidence: Floats) -> None:
        known = np.isfinite(confidence)
        self._kinds.add_by(kinds, variation)
        self._confidence_kinds.add_by(kinds[known], confidence[None, known])

    def _add_distances(self, change: StepChange, variation: Floats, confidence: Floats, masked: NDArray[Any]) -> None:
        distances = np.digitize(change.row.distances(change.state), _DISTANCE_EDGES)
        self._distances.add_by(distances, variation)
        self._confidence_distances.add_by(distances[masked], confidence[None, masked])

    def _add_drift(self, change: StepChange, age: int, stale: Floats) -> None:
        when = change.row.committed_at
        positions = np.select([when == GIVEN, (when >= change.state) | (when < change.state - age)], [0, 1], 2)
        for site, group, kind in product(range(len(_AGED_SITES)), range(len(GROUPS)), range(len(_AGED_POSITIONS))):
            values = stale[site][self._groups == group][:, positions == kind]
            self._drift.add(values.reshape(-1), self._series(site, group, kind, AGES.index(age)))

    def _series(self, site: int, group: int, kind: int, age: int) -> int:
        return ((site * len(GROUPS) + group) * len(_AGED_POSITIONS) + kind) * len(AGES) + age

    def result(self, prompts: int, steps: int) -> Analysis:
        """Return what was found."""
        return Analysis(
            family=self._spec.family,
            n_layers=self._spec.n_layers,
            prompts=prompts,
            steps=steps,
            pairs=self.pairs,
            confidence={name: self._confidence_change(number_) for number_, name in enumerate(_POPULATIONS)},
            variation=self._by_site([self._variation.distribution(i) for i in range(len(SITES) * self._spec.n_layers)]),
            correlation=self._by_site(self._correlations()),
            layer_correlation=self._layer_correlations(),
            concentration={"confidence": _concentrations(self._top_confidence)}
            | self._by_site(_concentrations(self._top)),
            kinds=self._means(KINDS, self._kinds, self._confidence_kinds),
            distances=self._means(DISTANCES, self._distances, self._confidence_distances),
            drift=tuple(self._drifts()),
        )

    def _by_site(self, values: Any) -> dict[str, Any]:
        """Return a sequence over sites and layers, divided by site."""
        layers = self._spec.n_layers
        return {site: tuple(values[i * layers : (i + 1) * layers]) for i, site in enumerate(SITES)}

    def _confidence_change(self, population: int) -> ConfidenceChange:
        distribution, bins = (
            self._confidence.distribution(population),
            self._confidence_bins.counts[population].tolist(),
        )
        share = float(self._small[population] / distribution.count) if distribution.count else None
        return ConfidenceChange(distribution, share, (*bins[1:-2], bins[-2] + bins[-1]))

    def _correlations(self) -> list[Correlation]:
        over_all, ranks = self._with_confidence.pearson()[:, 0], self._ranks_with_confidence.means()[:, 0]
        return [Correlation(number(a), number(b)) for a, b in zip(over_all, ranks, strict=True)]

    def _layer_correlations(self) -> dict[str, LayerCorrelation]:
        over_all = self._by_site([numbers(row) for row in self._with_hidden.pearson()])
        ranks = self._by_site([numbers(row) for row in self._ranks_with_hidden.means()])
        return {site: LayerCorrelation(over_all[site], ranks[site]) for site in SITES}

    def _means(self, names: tuple[str, ...], variation: Averages, confidence: Averages) -> dict[str, Means]:
        tensors, changes = variation.means(), confidence.means()[0]
        return {
            name: Means(
                int(variation.counts[0, i]), number(changes[i]), self._by_site([number(x) for x in tensors[:, i]])
            )
            for i, name in enumerate(names)
        }

    def _drifts(self) -> list[DriftByAge]:
        axes = (_AGED_SITES, GROUPS, _AGED_POSITIONS, AGES)
        return [
            DriftByAge(site, group, kind, age, self._drift.distribution(series))
            for series, (site, group, kind, age) in enumerate(product(*axes))
        ]


def _floored(variation: Floats) -> Floats:
    return np.where(variation < _FLOOR, 0.0, variation)


def _tops(values: Floats) -> Floats:
    return np.stack([top_share(values, 0.1), top_share(values, 0.25)], axis=1)


def _concentrations(averages: Averages) -> tuple[Concentration, ...]:
    return tuple(Concentration(number(a), number(b)) for a, b in averages.means())
