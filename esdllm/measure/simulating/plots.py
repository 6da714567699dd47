"""A picture of simulated traffic: what waits grow to as more is asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from esdllm.measure.benchmarking.serving import Load
from esdllm.measure.plots import COLORS, new_figure, plain_ticks, save_figure
from esdllm.measure.simulating.results import Simulated

__all__ = ["plot_simulated"]


def plot_simulated(found: Sequence[tuple[Load, Simulated]], title: str, path: Path) -> None:
    """Draw goodput, rows of a step and latency (p50, p99 dashed) over the rate, or over the concurrency; a colour a name.

    Raises:
        UnavailableError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(13, 4.2)
    goodput, width, latency = figure.subplots(1, 3)
    names = list(dict.fromkeys(one.name for _, one in found))
    for name, color in zip(names, COLORS * len(names), strict=False):
        own = [(load.rate or load.concurrency or 0, one) for load, one in found if one.name == name]
        asked, many = [x for x, _ in own], [one for _, one in own]
        goodput.plot(asked, [one.goodput for one in many], "o-", color=color, label=name, markersize=3)
        width.plot(asked, [one.width for one in many], "o-", color=color, markersize=3)
        for part, style in (("p50", "-"), ("p99", "--")):
            seconds = [getattr(one.latency, part, float("nan")) for one in many]
            latency.plot(asked, seconds, style, color=color)
    asking = "requests per second" if found[0][0].rate is not None else "requests under way"
    goodput.set(ylabel="answers in time per second", ylim=(0, None))
    width.set(ylabel="rows of a step", ylim=(0, None))
    latency.set(ylabel="seconds to the answer, p50; dashed p99", yscale="log")
    for axes in (goodput, width, latency):
        axes.set_xlabel(asking)
        axes.grid(alpha=0.3)
        plain_ticks(axes)
    goodput.legend(fontsize=8)
    figure.suptitle(title)
    save_figure(figure, path)
