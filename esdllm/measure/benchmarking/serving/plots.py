"""A picture of a benchmark of serving."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from esdllm.measure.benchmarking.serving.report import ServeReport, ServeRun
from esdllm.measure.plots import COLORS, new_figure, plain_ticks, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_serving"]


def plot_serving(report: ServeReport, path: Path) -> None:
    """Draw how long requests took, first text dashed, and how many rows ran over time.

    Raises:
        UnavailableError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    for number, run in enumerate(report.runs):
        color = COLORS[number % len(COLORS)]
        _draw_latencies(left, run, color)
        moments = run.moments()
        right.step([one.at for one in moments], [one.running for one in moments], where="post", color=color)
    left.axvline(report.within, color="0.6", linewidth=1, linestyle=":")
    left.set(xlabel="seconds; dashed: to the first settled text", ylabel="% of the requests", ylim=(0, 101))
    plain_ticks(left)
    right.set(xlabel="seconds", ylabel="rows that run", ylim=(0, None))
    right.yaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    if left.lines:
        left.legend(fontsize=8)
    figure.suptitle(f"{report.model}: {len(report.runs[0].answered)} requests per run")
    save_figure(figure, path)


def _draw_latencies(axes: Axes, run: ServeRun, color: str) -> None:
    """Draw the share of requests that took no longer than each time."""
    whole = sorted(one.latency for one in run.sound)
    first = sorted(one.first - one.asked for one in run.sound if one.first is not None)
    for seconds, style in ((whole, "-"), (first, "--")):
        shares = [100 * (i + 1) / len(run.answered) for i in range(len(seconds))]
        label = f"{run.target}, {run.load.name}" if style == "-" else None
        axes.step(seconds, shares, style, where="post", color=color, label=label, linewidth=1.5 if label else 1)
