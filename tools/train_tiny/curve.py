"""The curve of a run: its loss over its tokens, drawn from `log.jsonl`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from layouts import LAYOUTS


def read_log(log: Path) -> list[dict[str, Any]]:
    """The rows of a run's log by their step; of steps that a resumed run made again, the later row."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [row for _, row in sorted({row["step"]: row for row in rows}.items())]


def smoothed(losses: list[float]) -> list[float]:
    """Geometric means over windows of about 2 % of the run, narrower towards the ends so that they stay centred."""
    logs, most, last = [math.log(loss) for loss in losses], len(losses) // 100 + 1, len(losses) - 1
    halves = [min(most, place, last - place) for place in range(len(logs))]
    windows = [logs[place - half : place + half + 1] for place, half in enumerate(halves)]
    return [math.exp(sum(window) / len(window)) for window in windows]


def draw_curve(log: Path, picture: Path, family: str, parameters: int) -> None:
    """Draws a run's loss, raw and smoothed, on a logarithmic axis over its tokens, as a PNG."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    rows = read_log(log)
    tokens, losses = [row["tokens"] / 1e6 for row in rows], [row["loss"] for row in rows]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(tokens, losses, color="tab:blue", linewidth=0.8, alpha=0.5, label="mean of 20 steps")
    axes.plot(tokens, smoothed(losses), color="tab:blue", linewidth=1.6, label="smoothed")
    axes.set(yscale="log", xlabel="tokens (millions)", ylabel="loss on masked tokens")
    axes.set_title(f"Tiny {LAYOUTS[family].title}, {parameters / 1e6:.1f}M parameters")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=120)
