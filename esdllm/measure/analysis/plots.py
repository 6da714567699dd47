"""The pictures of an analysis, one file each. Colours are Okabe and Ito's, told apart by every eye; lines differ in marks too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from esdllm.errors import InputError
from esdllm.measure.analysis.replay import AGES
from esdllm.measure.analysis.result import Analysis, Means
from esdllm.measure.plots import new_figure, require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PLOTS", "draw"]

_LOOKS = {
    "hidden": ("#0072B2", "o"),
    "query": ("#E69F00", "s"),
    "key": ("#009E73", "^"),
    "value": ("#CC79A7", "D"),
    "first": ("#56B4E9", "o"),
    "middle": ("#E69F00", "s"),
    "last": ("#000000", "^"),
    "block": ("#0072B2", "o"),
    "masked": ("#009E73", "s"),
    "answer": ("#D55E00", "^"),
}
_POPULATIONS = {"block": "masked, in the block", "masked": "masked, anywhere", "answer": "whole answer"}
_VARIATION = "relative variation (no unit)"


def draw(found: Analysis, folder: Path, kind: str = "png", prefix: str = "") -> list[Path]:
    """Draw all of PLOTS into a folder, made if need be, and return the files. `kind` is png, svg or pdf.

    Raises:
        UnavailableError: matplotlib is not installed.
        InputError: the folder cannot be made.
    """
    require_matplotlib()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error
    files = []
    for name, plot in PLOTS.items():
        figure = plot(found)
        files.append(folder / f"{prefix}{name}.{kind}")
        figure.savefig(files[-1], dpi=144)
    return files


def _figure(columns: int, rows: int = 1, **shared: Any) -> tuple[Figure, list[Axes]]:
    figure = new_figure(1.2 + 3.9 * columns, 0.5 + 3.1 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, **shared).ravel().tolist()
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25, linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def _line(axes: Axes, x: Sequence[int], y: Iterable[float | None], look: str, **style: Any) -> None:
    colour, mark = _LOOKS[look]
    values = [np.nan if value is None else value for value in y]
    axes.plot(x, values, **{"color": colour, "marker": mark, "markersize": 4, "linewidth": 1.6, "label": look, **style})


def _whole_layers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer")


def confidence(found: Analysis) -> Figure:
    """Return the histogram of confidence changes, and the share of the changes that exceed a given one."""
    figure, (left, right) = _figure(2)
    figure.set_size_inches(10.5, 4.0)
    shown = {name: change for name, change in found.confidence.items() if change.distribution.count}
    for number, (name, change) in enumerate(shown.items()):
        shares = np.array(change.histogram) / change.distribution.count
        coarse = shares.reshape(20, 5).sum(axis=1)
        width = 0.044 / len(shown)
        places = np.arange(20) * 0.05 + 0.003 + (number + 0.5) * width
        left.bar(places, coarse, width=width, color=_LOOKS[name][0], label=_POPULATIONS[name])
        label = f"{_POPULATIONS[name]}: {change.share_below:.1%} below 0.05"
        beyond = np.append(shares[::-1].cumsum()[::-1], 0.0)
        right.plot(np.linspace(0, 1, 101), beyond, color=_LOOKS[name][0], linewidth=1.6, label=label)
    left.set(ylabel="share of the changes (log)", title="histogram, bins of 0.05")
    right.set(ylabel="share of the changes that are larger (log)", title="larger than")
    right.axvline(0.05, color="black", linestyle=":", linewidth=1)
    for axes in (left, right):
        axes.set(yscale="log", xlim=(0, 1), xlabel="change of confidence between two steps")
        axes.legend(frameon=False, loc="upper right")
    return figure


def variation(found: Analysis) -> Figure:
    """Return every layer's variation: the median, and where nine tenths of the answer positions lie."""
    figure, panels = _figure(2, 2, sharex=True, sharey=True)
    for axes, (site, distributions) in zip(panels, found.variation.items(), strict=True):
        low, middle, high = (
            [getattr(distribution, q) or 0.0 for distribution in distributions] for q in ("q05", "median", "q95")
        )
        layers = np.arange(found.n_layers)
        axes.fill_between(layers, low, high, color=_LOOKS[site][0], alpha=0.25, linewidth=0, label="5 % to 95 %")
        _line(axes, range(found.n_layers), middle, site, label="median", clip_on=False)
        axes.set_title(site)
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.legend(frameon=False, loc="lower right")
    for axes in panels[2:]:
        _whole_layers(axes)
    panels[0].set_ylim(bottom=0)
    for axes in panels[::2]:
        axes.set_ylabel(f"{_VARIATION}\nlogarithmic from 0.001 on")
    return figure


def correlation(found: Analysis) -> Figure:
    """Return how far variation tells the change of confidence, by layer."""
    figure, panels = _figure(2, sharey=True)
    for axes, kind in zip(panels, ("pearson", "spearman"), strict=True):
        for site, values in found.correlation.items():
            _line(axes, range(found.n_layers), [getattr(value, kind) for value in values], site)
        axes.axhline(0, color="black", linewidth=0.8)
        _whole_layers(axes)
    panels[0].set_title("Pearson, all steps together")
    panels[1].set_title("Spearman, within a step")
    panels[0].set_ylabel("correlation of variation\nwith change of confidence")
    panels[1].legend(frameon=False)
    return figure


def layers(found: Analysis) -> Figure:
    """Return how far the variation at one layer tells that at another."""
    from matplotlib.ticker import MaxNLocator

    figure, (left, right) = _figure(2)
    figure.set_size_inches(9.6, 3.9)
    matrix = np.array([[np.nan if x is None else x for x in row] for row in found.layer_correlation["hidden"].spearman])
    left.grid(False)
    image = left.imshow(matrix, origin="lower", vmin=min(0.0, np.nanmin(matrix, initial=0.0)), vmax=1, cmap="cividis")
    figure.colorbar(image, ax=left, label="Spearman, within a step")
    left.set(ylabel="layer", title="hidden with hidden")
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    _whole_layers(left)
    for site, found_ in found.layer_correlation.items():
        _line(right, range(found.n_layers), [row[-1] for row in found_.spearman], site)
    right.set(title="every tensor with the last layer's hidden", ylabel="Spearman, within a step")
    _whole_layers(right)
    right.legend(frameon=False)
    return figure


def concentration(found: Analysis) -> Figure:
    """Return how much of a step's change sits in few positions, by layer."""
    figure, panels = _figure(2, sharey=True)
    parts = (("top_10", "top 10 % of the positions", 0.1), ("top_25", "top 25 % of the positions", 0.25))
    for axes, (name, title, even) in zip(panels, parts, strict=True):
        for site in found.variation:
            _line(axes, range(found.n_layers), [getattr(value, name) for value in found.concentration[site]], site)
        axes.axhline(even, color="black", linestyle=":", linewidth=1)
        axes.annotate(
            "if all changed alike",
            (0.98, even),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            fontsize=8,
        )
        axes.set(title=title, ylim=(0, 1.03))
        _whole_layers(axes)
    panels[0].set_ylabel("share of a step's variation\nthat they hold")
    panels[1].legend(frameon=False)
    return figure


def kinds(found: Analysis) -> Figure:
    """Return mean change by kind of position."""
    figure, panels = _figure(2)
    figure.set_size_inches(10.5, 4.4)
    groups = {name: means for name, means in found.kinds.items() if means.count}
    _confidence_and_variation(panels, groups, _marks)
    for axes in panels:
        axes.set_xticks(range(len(groups)), [name.replace(" ", "\n", 1) for name in groups], fontsize=9)
        axes.grid(False, axis="x")
        axes.set_xlim(-0.5, len(groups) - 0.5)
    return figure


def distances(found: Analysis) -> Figure:
    """Return mean change by distance to what was just committed."""
    figure, panels = _figure(2)
    groups = {name: means for name, means in found.distances.items() if means.count}
    _confidence_and_variation(panels, groups, _points)
    for axes in panels:
        axes.set_xticks(range(len(groups)), list(groups), rotation=45)
        axes.set(
            xlim=(-0.5, len(groups) - 0.5), xlabel="distance to the nearest position\njust committed, in positions"
        )
    panels[0].set_title("confidence (masked positions)")
    return figure


def _marks(axes: Axes, values: Sequence[float], look: str, number: int, of: int) -> None:
    """Draw marks side by side: on a logarithmic axis a bar's length would say nothing."""
    colour, mark = _LOOKS[look]
    places = np.arange(len(values)) + 0.6 * (number - (of - 1) / 2) / of
    axes.plot(places, values, color=colour, marker=mark, markersize=7, linestyle="none", label=look)


def _points(axes: Axes, values: Sequence[float], look: str, number: int, of: int) -> None:
    _line(axes, range(len(values)), values, look)


def _confidence_and_variation(
    panels: Sequence[Axes], groups: Mapping[str, Means], plot: Callable[[Axes, Sequence[float], str, int, int], None]
) -> None:
    """Draw the confidence into the left panel and the sites, over all layers, into the right one."""
    left, right = panels
    plot(left, [_visible(means.confidence) for means in groups.values()], "answer", 0, 1)
    sites = list(next(iter(groups.values())).variation)
    for number, site in enumerate(sites):
        values = [_visible(_mean(means.variation[site])) for means in groups.values()]
        plot(right, values, site, number, len(sites))
    left.set(yscale="log", title="confidence", ylabel="mean change of confidence (log)")
    right.set(yscale="log", title="tensors, mean over the layers", ylabel="mean relative variation (log)")
    right.legend(frameon=False)


def _visible(value: float | None) -> float:
    """Return a value for a logarithmic axis, which has no place for 0."""
    return value or np.nan


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def drift(found: Analysis) -> Figure:
    """Return how far tensors are from what they were some steps before: the error of a cache of that age."""
    figure, panels = _figure(3, sharey=True)
    for axes, site in zip(panels, ("hidden", "key", "value"), strict=True):
        for positions, style in (("unchanged", "-"), ("prompt", "--")):
            for group in ("first", "middle", "last"):
                line = [e for e in found.drift if (e.site, e.layers, e.positions) == (site, group, positions)]
                if any(entry.distribution.count for entry in line):
                    means = [entry.distribution.mean for entry in line]
                    where = "answer" if positions == "unchanged" else "prompt"
                    label = f"{where}, {group} {'half' if group == 'middle' else 'quarter'}"
                    _line(axes, AGES, means, group, linestyle=style, label=label)
        axes.set_xscale("log", base=2)
        axes.set_xticks(AGES, [str(age) for age in AGES])
        axes.set(title=site, xlabel="age in steps")
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel(f"mean {_VARIATION}")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


PLOTS: Mapping[str, Callable[[Analysis], Figure]] = {
    "confidence": confidence,
    "variation": variation,
    "correlation": correlation,
    "layers": layers,
    "concentration": concentration,
    "kinds": kinds,
    "distances": distances,
    "drift": drift,
}
"""What `draw` draws, by file name."""
