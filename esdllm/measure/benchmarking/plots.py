"""Pictures of benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from esdllm.measure.benchmarking.curve import Curve
from esdllm.measure.benchmarking.profiling import WORK
from esdllm.measure.benchmarking.report import Report
from esdllm.measure.plots import COLORS, new_figure, plain_ticks, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_curve", "plot_report"]

_MARKERS = "osD^vP*X"
_AXES = {
    "length": "columns of the canvas",
    "batch": "prompts decoded together",
    "layers": "layers",
    "vocab": "vocabulary",
}


def plot_report(report: Report, path: Path) -> None:
    """Draw tokens per second, the time of each kind of step, and if profiled where that time goes.

    Raises:
        UnavailableError: matplotlib is not installed, or the file cannot be written.
    """
    profiled = any(timing.shares for timing in report.timings)
    kinds = sum(len(timing.kinds) for timing in report.timings)
    figure = new_figure(16 if profiled else 11, max(4.5, 1.5 + 0.28 * kinds))
    axes = figure.subplots(1, 3 if profiled else 2, width_ratios=(1, 1.3, 1.2) if profiled else (1, 1.3))
    _draw_speeds(axes[0], report)
    _draw_kinds(axes[1], report)
    if profiled:
        _draw_shares(axes[2], report)
    figure.suptitle(
        f"{report.setting.model}: prompt {report.setting.prompt_length}, batch {report.setting.batch}; "
        "medians and quartiles"
    )
    save_figure(figure, path)


def _draw_speeds(axes: Axes, report: Report) -> None:
    speeds = [timing.rate(timing.committed) for timing in report.timings]
    for number, speed in enumerate(speeds):
        around = [[max(0.0, speed.median - speed.low)], [max(0.0, speed.high - speed.median)]]
        axes.barh(number, speed.median, xerr=around, color=COLORS[number % len(COLORS)], alpha=0.85)
    axes.set_yticks(range(len(speeds)), [timing.name.replace(" ", "\n") for timing in report.timings], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlabel("tokens decided per second")


def _draw_kinds(axes: Axes, report: Report) -> None:
    labels: list[str] = []
    for number, timing in enumerate(report.timings):
        for kind in timing.kinds:
            time, color = kind.milliseconds, COLORS[number % len(COLORS)]
            around = [[max(0.0, time.median - time.low)], [max(0.0, time.high - time.median)]]
            axes.errorbar(time.median, len(labels), xerr=around, fmt="o", color=color)
            if (predicted := report.predicted(kind)) is not None:
                axes.plot(predicted, len(labels), "|", color=color, markersize=14)
            labels.append(f"{timing.name}: {kind.name}")
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("ms per step" + ("; | predicted from the peaks" if report.peak else ""))
    plain_ticks(axes)
    axes.grid(alpha=0.3, axis="x")


def _draw_shares(axes: Axes, report: Report) -> None:
    bars = [
        (f"{timing.name}: {name}", shares)
        for timing in report.timings
        for name, shares in (timing.shares or {}).items()
    ]
    left = [0.0] * len(bars)
    for number, work in enumerate(WORK):
        widths = [100 * shares.get(work, 0.0) for _, shares in bars]
        axes.barh(range(len(bars)), widths, left=left, color=COLORS[number % len(COLORS)], label=work)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(bars)), [name for name, _ in bars], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("% of the step's time")
    axes.legend(fontsize=8, loc="upper right", bbox_to_anchor=(1.0, -0.12), ncols=6, columnspacing=0.8, handlelength=1)


def _plain_ticks(axes: Axes) -> None:
    """Write plain numbers beside a logarithmic axis of y, which may span less than a decade."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 30 * low else (1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def plot_curve(curve: Curve, path: Path) -> None:
    """Draw time per forward and memory against the size, both axes logarithmic.

    Raises:
        UnavailableError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(11, 4.5)
    left, right = figure.subplots(1, 2)
    for number, name in enumerate(curve.names):
        style = {"color": COLORS[number % len(COLORS)], "marker": _MARKERS[number % len(_MARKERS)], "markersize": 5}
        times = [one.milliseconds_a_forward for one in curve.timings(number)]
        label = f"{name}: slope {curve.time_slope(number):.2f}"
        left.plot(curve.values, [time.median for time in times], label=label, **style)
        left.fill_between(
            curve.values, [time.low for time in times], [time.high for time in times], alpha=0.2, color=style["color"]
        )
        memory = [one.memory.bytes / 1e6 if one.memory else None for one in curve.timings(number)]
        if all(memory):
            right.plot(curve.values, memory, label=f"{name}: slope {curve.memory_slope(number):.2f}", **style)
    left.set_ylabel("ms per forward")
    right.set_ylabel("MB beside the weights, at most")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel=_AXES[curve.over])
        axes.set_xticks(curve.values, [str(value) for value in curve.values])
        _plain_ticks(axes)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    figure.suptitle(f"{curve.reports[0].setting.model}: what grows with the {_AXES[curve.over]}")
    save_figure(figure, path)
