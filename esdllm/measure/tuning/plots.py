"""The picture of a search: loss against speed-up, the tolerance, the Pareto front, the choice."""

from __future__ import annotations

from pathlib import Path

from esdllm.measure.evaluation.outcomes import pareto
from esdllm.measure.plots import COLORS, new_figure, plain_ticks, save_figure
from esdllm.measure.tuning.trials import Tuning

__all__ = ["plot_tuning"]


def plot_tuning(tuning: Tuning, path: Path) -> None:
    """Draw every setting tried, the front that none beats, the tolerance, and the choice as validated.

    Raises:
        UnavailableError: matplotlib is not installed, or the file cannot be written.
    """
    figure = new_figure(8, 5)
    axes = figure.subplots()
    points = [(trial.speedup, 100 * trial.loss) for trial in tuning.trials]
    front = [points[i] for i in pareto([(x, -y) for x, y in points])]
    limit, loss = 100 * tuning.goal.max_loss, tuning.loss
    axes.axhspan(min(0.0, *(y for _, y in points)) - 1, limit, color="0.93", zorder=0)
    axes.axhline(limit, color="0.5", linewidth=1, linestyle="--", label=f"tolerance: {limit:g} points")
    axes.step(*zip(*front, strict=True), where="pre", color="0.7", linewidth=3, zorder=1, label="Pareto front")
    tried = points[1:]
    axes.scatter([x for x, _ in tried], [y for _, y in tried], s=18, color=COLORS[0], zorder=2, label="settings tried")
    axes.scatter([points[0][0]], [points[0][1]], s=60, marker="s", color=COLORS[2], zorder=3, label="the base as it is")
    x, y = tuning.chosen.speedup, 100 * tuning.chosen.loss
    axes.scatter(x, y, s=90, facecolors="none", edgecolors=COLORS[1], linewidths=2, zorder=4, label="chosen")
    middle, spread = 100 * loss.value, [[100 * (loss.value - loss.low)], [100 * (loss.high - loss.value)]]
    again = tuning.goal.speedup(tuning.outcome, tuning.validation.reference)
    axes.errorbar(
        again, middle, spread, fmt="D", color=COLORS[1], capsize=3, zorder=5, label="chosen, on other problems"
    )
    cost = {"work": "computation", "time": "time"}[tuning.goal.cost]
    axes.set(xlabel=f"{tuning.validation.reference.name}'s {cost} over its own", ylabel="loss, points", xscale="log")
    worst = max(limit, y, 100 * loss.high)
    axes.set_ylim(min(0.0, *(y for _, y in points), 100 * loss.low) - 1, min(105, max(3 * worst, 5)))
    axes.grid(alpha=0.3)
    plain_ticks(axes)
    axes.legend(loc="upper left")
    axes.set_title(f"{tuning.validation.model}: {len(tuning.trials)} settings on {tuning.validation.suite}")
    save_figure(figure, path)
