"""What every picture is made with: a figure, its colours, its ticks, its file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from esdllm.errors import InputError, UnavailableError, installing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLORS", "check_format", "new_figure", "plain_ticks", "require_matplotlib", "save_figure"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#999999")
"""Okabe and Ito's, which the colour-blind can tell apart."""

_FORMATS = (".png", ".svg", ".pdf")


def require_matplotlib() -> None:
    """Return if pictures can be drawn.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UnavailableError(f"plots need matplotlib: {installing('plot')}") from error


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, which needs no display.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # optional, and slow to import

    return Figure(figsize=(width, height), layout="constrained")


def check_format(path: Path | None) -> None:
    """Return if a picture of that name could be drawn, which long work should know before it begins.

    Raises:
        UnavailableError: matplotlib is not installed.
        InputError: the name ends in no format.
    """
    if path is None:
        return
    require_matplotlib()
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
