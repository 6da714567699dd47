"""Time and memory as work grows: the same contenders at several sizes, and the slope of what they take."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import attrs

from esdllm.errors import InputError
from esdllm.measure.benchmarking.geometries import resized
from esdllm.measure.benchmarking.report import Report, Timing
from esdllm.measure.benchmarking.setting import BenchContender, Setting

__all__ = ["AXES", "Axis", "Curve", "at", "curve", "slope"]

Axis = Literal["length", "batch", "layers", "vocab"]
AXES: tuple[Axis, ...] = get_args(Axis)
"""What can grow: the canvas (by its prompt), the prompts decoded together, the model's layers, its vocabulary."""


@attrs.frozen
class Curve:
    """A report for each size."""

    over: Axis
    values: tuple[int, ...]
    """ascending"""
    reports: tuple[Report, ...]

    @property
    def names(self) -> list[str]:
        """The contenders."""
        return [timing.name for timing in self.reports[0].timings]

    def timings(self, number: int) -> list[Timing]:
        """Return what one contender took, size by size."""
        return [report.timings[number] for report in self.reports]

    def time_slope(self, number: int) -> float:
        """Return the slope of the time per forward."""
        return slope(self.values, [one.milliseconds_a_forward.median for one in self.timings(number)])

    def flops_slope(self, number: int) -> float:
        """Return the slope of the counted FLOPs per forward."""
        return slope(self.values, [one.flops / max(1, one.forwards) for one in self.timings(number)])

    def memory_slope(self, number: int) -> float | None:
        """Return the slope of the memory; None if it could not be measured at every size."""
        found = [one.memory.bytes if one.memory else 0 for one in self.timings(number)]
        return slope(self.values, found) if all(found) else None

    def to_dict(self) -> dict[str, Any]:
        """Return all reports and slopes as plain dicts for JSON."""
        return {
            "format": "esdllm-bench-curve-1",
            "over": self.over,
            "values": list(self.values),
            "slopes": {
                name: {
                    "time": self.time_slope(number),
                    "flops": self.flops_slope(number),
                    "memory": self.memory_slope(number),
                }
                for number, name in enumerate(self.names)
            },
            "reports": [report.to_dict() for report in self.reports],
        }


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the slope of the straight line that fits log y against log x best: 1 where y grows as x, 2 as its square.

    Raises:
        ValueError: fewer than two different x.
    """
    logs = [(math.log(a), math.log(b)) for a, b in zip(x, y, strict=True)]
    middle_x, middle_y = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    across: float = sum((a - middle_x) ** 2 for a, _ in logs)
    if not across:
        raise ValueError("a slope needs two different sizes")
    together: float = sum((a - middle_x) * (b - middle_y) for a, b in logs)
    return together / across


def at(setting: Setting, over: Axis, value: int, gen_length: int) -> Setting:
    """Return a setting at one size; of a model with random weights the context grows with the canvas.

    Raises:
        InputError: the size does not suit the setting.
    """
    if over == "batch":
        return attrs.evolve(setting, batch=value)
    if over == "length":
        if value <= gen_length:
            raise InputError(
                f"a canvas of {value} has no room for a prompt before gen_length = {gen_length}; give larger ones, or "
                "lower --gen-length"
            )
        sizes, setting = {"context": value}, attrs.evolve(setting, prompt_length=value - gen_length)
    elif setting.geometry is None:
        raise InputError(f"a checkpoint has the {over} that it has; give --geometry instead of --model")
    else:
        sizes = {str(over): value}
    return setting if setting.geometry is None else attrs.evolve(setting, geometry=resized(setting.geometry, sizes))


def curve(
    setting: Setting,
    contenders: Sequence[BenchContender],
    over: Axis,
    values: Sequence[int],
    measure: Callable[[Setting], Report],
) -> Curve:
    """Return what `measure` reports at each size, the smallest first.

    Raises:
        InputError: fewer than two sizes, or one that does not suit the setting; before anything is measured.
    """
    ordered = sorted(set(values))
    if len(ordered) < 2 or ordered[0] < 1:
        raise InputError(f"the sizes are {list(values)}; give at least two different ones, above 0")
    longest = max(contender.config.gen_length for contender in contenders)
    settings = [at(setting, over, value, longest) for value in ordered]
    return Curve(over, tuple(ordered), tuple(measure(one) for one in settings))
