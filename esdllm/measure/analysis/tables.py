"""An analysis as tables of text: for a terminal, for Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from esdllm.measure.analysis.replay import AGES
from esdllm.measure.analysis.result import Analysis, Distribution, Means

__all__ = ["Grid", "markdown", "tables"]

_POPULATIONS = {
    "block": "masked, in block",
    "masked": "masked, anywhere",
    "answer": "whole answer",
}


class Grid(NamedTuple):
    """A table: its title, its column heads, its rows. Numbers are set; what was not measured is a dash."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(found: Analysis) -> list[Grid]:
    """Return the tables of an analysis: confidence, layers, correlation, kinds, distance, drift."""
    return [_confidence(found), _layers(found), _tells(found), _kinds(found), _distances(found), _drift(found)]


def markdown(grid: Grid) -> str:
    """Return a table as Markdown, with its title above."""
    lines = [grid.head, ("---",) * len(grid.head), *grid.rows]
    return f"**{grid.title}**\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _number(value: float | None) -> str:
    """Return three digits, as far as they are not zeros behind the point."""
    return "-" if value is None else "0" if value == 0 else f"{value:.3f}" if abs(value) >= 0.001 else f"{value:.0e}"


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _confidence(found: Analysis) -> Grid:
    rows = []
    for name, title in _POPULATIONS.items():
        change = found.confidence[name]
        distribution = change.distribution
        numbers = map(_number, (distribution.mean, distribution.median, distribution.q95))
        rows.append((title, str(distribution.count), _share(change.share_below), *numbers))
    head = ("positions", "changes", "below 0.05", "mean", "median", "95 %")
    return Grid("Change of confidence between steps", head, tuple(rows))


def _layers(found: Analysis) -> Grid:
    rows = [
        (str(layer), *(_number(distributions[layer].median) for distributions in found.variation.values()))
        for layer in range(found.n_layers)
    ]
    return Grid("Median variation of the answer's tensors, by layer", ("layer", *found.variation), tuple(rows))


def _tells(found: Analysis) -> Grid:
    rows = []
    for layer in range(found.n_layers):
        with_confidence, top = found.correlation["hidden"][layer], found.concentration["hidden"][layer]
        numbers = (
            with_confidence.pearson,
            with_confidence.spearman,
            found.layer_correlation["hidden"].spearman[layer][-1],
        )
        rows.append((str(layer), *map(_number, numbers), _share(top.top_10), _share(top.top_25)))
    head = ("layer", "Pearson", "Spearman", "last layer", "top 10 %", "top 25 %")
    title = (
        "The variation of hidden: its correlation with the change of confidence, and with the last layer's (Spearman); "
        "the share of it that the most changed positions hold"
    )
    return Grid(title, head, tuple(rows))


def _means(title: str, what: str, groups: Iterable[tuple[str, Means]]) -> Grid:
    rows = tuple(
        (
            name,
            str(means.count),
            _number(means.confidence),
            *(_number(_mean(layers)) for layers in means.variation.values()),
        )
        for name, means in groups
        if means.count
    )
    return Grid(title, (what, "pairs", "confidence", "hidden", "query", "key", "value"), rows)


def _kinds(found: Analysis) -> Grid:
    return _means("Mean change by kind of position, tensors over all layers", "kind", found.kinds.items())


def _distances(found: Analysis) -> Grid:
    title = "Mean change by distance to what was just committed, tensors over all layers"
    return _means(title, "distance", found.distances.items())


def _drift(found: Analysis) -> Grid:
    lines: dict[tuple[str, str, str], list[Distribution]] = {}
    for entry in found.drift:
        lines.setdefault((entry.positions, entry.site, entry.layers), []).append(entry.distribution)
    rows = [
        (*key, *_ages(distributions))
        for key, distributions in sorted(lines.items(), key=_order)
        if any(s.count for s in distributions)
    ]
    head = ("positions", "tensor", "layers", *map(str, AGES))
    return Grid("Mean variation against the value 1 to 32 steps before", head, tuple(rows))


def _order(line: tuple[tuple[str, str, str], object]) -> int:
    return ("prompt", "unchanged", "committed").index(line[0][0])


def _ages(distributions: Sequence[Distribution]) -> list[str]:
    return [_number(distribution.mean) for distribution in distributions]
