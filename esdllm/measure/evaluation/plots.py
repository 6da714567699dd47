"""Pictures of an evaluation: quality against speed and against work, with the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from esdllm.errors import InputError, UnavailableError, installing
from esdllm.measure.evaluation.outcomes import Outcome, Report, pareto
from esdllm.measure.evaluation.statistics import ONE_BATCH, Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "check_format", "draw_front", "new_figure", "plain_ticks", "plot_report", "save_figure"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
"""Okabe and Ito's, which the colour-blind can tell apart."""

_MARKERS = "osD^vP*X"
_FORMATS = (".png", ".svg", ".pdf")
_SAME = 0.02  # of the axis: points as near as that are drawn side by side
_APART = 6.0  # points of 1/72 inch between them


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, which needs no display.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UnavailableError(f"plots need matplotlib: {installing('plot')}") from error
    return Figure(figsize=(width, height), layout="constrained")


def check_format(path: Path | None) -> None:
    """Return if a picture of that name could be drawn, which long work should know before it begins.

    Raises:
        UnavailableError: matplotlib is not installed.
        InputError: the name ends in no format.
    """
    if path is None:
        return
    new_figure(1, 1)
    if path.suffix not in _FORMATS:
        raise InputError(f"the plot's name is {path.name}; let it end in {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; its format is the name's ending: png, svg or pdf.

    Raises:
        UnavailableError: the file cannot be written, or its format is unknown.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise UnavailableError(f"cannot write the plot {path}: {error}") from error


def draw_front(axes: Axes, names: Sequence[str], points: Sequence[tuple[float, Interval]]) -> None:
    """Draw named points (more is better on both axes) with their intervals, and the best score at each x or more.

    Points at almost the same x are drawn side by side, so that none hides another.
    """
    from matplotlib.transforms import ScaledTranslation

    shown = [(x, 100 * y.value) for x, y in points]
    front = [shown[i] for i in pareto(shown)]
    front.insert(0, (min(x for x, _ in shown), front[0][1]))
    axes.step(*zip(*front, strict=True), where="pre", color="0.8", linewidth=3, zorder=1, label="Pareto front")
    for number, (name, (x, y), aside) in enumerate(zip(names, points, _asides([x for x, _ in shown]), strict=True)):
        spread = [[100 * max(0.0, y.value - y.low)], [100 * max(0.0, y.high - y.value)]]
        marker = _MARKERS[(number + number // len(_MARKERS)) % len(_MARKERS)]
        bars = axes.errorbar(
            x,
            100 * y.value,
            spread,
            fmt=marker,
            color=COLORS[number % len(COLORS)],
            markersize=7,
            elinewidth=1.2,
            label=name,
            zorder=3,
            transform=axes.transData + ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans),
        )
        for line in bars[2]:
            line.set_alpha(0.5)
        axes.update_datalim([(x, 100 * y.low), (x, 100 * y.high)])  # what is shifted is not counted by itself
    axes.autoscale_view()
    axes.grid(alpha=0.3)


def _asides(values: Sequence[float]) -> list[float]:
    """Return how far each point goes aside, in points of 1/72 inch: 0 for one that stands alone."""
    logs = [math.log(max(value, 1e-9)) for value in values]
    near = _SAME * max(max(logs) - min(logs), 0.1)
    groups: list[list[int]] = []
    for i in sorted(range(len(logs)), key=lambda i: (logs[i], i)):
        if groups and logs[i] - logs[groups[-1][-1]] <= near:
            groups[-1].append(i)
        else:
            groups.append([i])
    asides = {i: _APART * (place - (len(group) - 1) / 2) for group in groups for place, i in enumerate(group)}
    return [asides[i] for i in range(len(values))]


def plot_report(report: Report, path: Path) -> None:
    """Draw the share of right answers against tokens a second, and against the reference's computation over its own.

    Raises:
        UnavailableError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(11, 5)
    left, right = figure.subplots(1, 2, sharey=True)
    names = [_label(report, outcome) for outcome in report.outcomes]
    scores = [report.score(outcome) for outcome in report.outcomes]
    speeds = [outcome.tokens_per_second for outcome in report.outcomes]
    work = [1 / max(report.compute_share(outcome), 1e-9) for outcome in report.outcomes]
    draw_front(left, names, list(zip(speeds, scores, strict=True)))
    draw_front(right, names, list(zip(work, scores, strict=True)))
    alone = len(report.reference.batches) == 1
    left.set(
        xlabel=f"answer tokens a second{f' ({ONE_BATCH})' if alone else ''}",
        ylabel="right answers, % (bars: 95 % interval)",
    )
    right.set(xlabel=f"computation of {report.reference.name} over its own")
    for axes in (left, right):
        plain_ticks(axes)
    handles, labels = left.get_legend_handles_labels()
    order = [*range(1, len(labels)), 0]  # the contenders as they were given, then the front
    columns = 3 if max(map(len, labels)) > 30 else 5
    figure.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside lower center", ncols=columns)
    what = f"{len(report.problems)} problems of {report.suite}" if report.suite else f"{len(report.problems)} problems"
    figure.suptitle(f"{report.model or 'model'}: {what}")
    save_figure(figure, path)


def _label(report: Report, outcome: Outcome) -> str:
    """Return a contender's name, with how many times faster it is than the reference where that was measured."""
    found = report.speedup(outcome)
    if found is None or outcome is report.reference:
        return outcome.name
    return f"{outcome.name}: {found.value:.2f}x ({found.percent} %: {found.low:.2f} to {found.high:.2f})"


def plain_ticks(axes: Axes) -> None:
    """Make the axis of x logarithmic with plain numbers, or leave it linear if it spans too little, or reaches 0."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.dataLim.intervalx
    if low <= 0 or high < 3 * low:
        axes.set_xscale("linear")
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 30 * low else (1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
