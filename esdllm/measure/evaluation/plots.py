"""Pictures of an evaluation: quality against speed and against work, with the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from esdllm.measure.evaluation.outcomes import Evaluation, Outcome, pareto
from esdllm.measure.evaluation.statistics import ONE_BATCH, Interval
from esdllm.measure.plots import COLORS, new_figure, plain_ticks, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_front", "plot_evaluation"]

_MARKERS = "osD^vP*X"
_SAME = 0.02  # of the axis: points as near as that are drawn side by side
_APART = 6.0  # points of 1/72 inch between them


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


def plot_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Draw the share of right answers against tokens per second, and against the reference's computation over its own.

    Raises:
        UnavailableError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(11, 5)
    left, right = figure.subplots(1, 2, sharey=True)
    names = [_label(evaluation, outcome) for outcome in evaluation.outcomes]
    scores = [evaluation.score(outcome) for outcome in evaluation.outcomes]
    speeds = [outcome.tokens_per_second for outcome in evaluation.outcomes]
    work = [1 / max(evaluation.compute_share(outcome), 1e-9) for outcome in evaluation.outcomes]
    draw_front(left, names, list(zip(speeds, scores, strict=True)))
    draw_front(right, names, list(zip(work, scores, strict=True)))
    alone = len(evaluation.reference.batches) == 1
    left.set(
        xlabel=f"answer tokens per second{f' ({ONE_BATCH})' if alone else ''}",
        ylabel="right answers, % (bars: 95 % interval)",
    )
    right.set(xlabel=f"computation of {evaluation.reference.name} over its own")
    for axes in (left, right):
        plain_ticks(axes)
    handles, labels = left.get_legend_handles_labels()
    order = [*range(1, len(labels)), 0]  # the contenders as they were given, then the front
    columns = 3 if max(map(len, labels)) > 30 else 5
    figure.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside lower center", ncols=columns)
    what = f"{len(evaluation.problems)} problems{f' of {evaluation.suite}' if evaluation.suite else ''}"
    figure.suptitle(f"{evaluation.model or 'model'}: {what}")
    save_figure(figure, path)


def _label(evaluation: Evaluation, outcome: Outcome) -> str:
    """Return a contender's name, with how many times faster it is than the reference where that was measured."""
    found = evaluation.speedup(outcome)
    if found is None or outcome is evaluation.reference:
        return outcome.name
    return f"{outcome.name}: {found.value:.2f}x ({found.percent} %: {found.low:.2f} to {found.high:.2f})"
