"""What a benchmark found: numbers as they were measured, what follows from them, and their way into JSON and back."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import cattrs

from esdllm.errors import InputError
from esdllm.measure.benchmarking.peak import Peak
from esdllm.measure.benchmarking.setting import Setting
from esdllm.measure.cost import Kind
from esdllm.parsing import parse_json

__all__ = ["FORMAT", "KindTimes", "PeakMemory", "Quartiles", "Report", "Timing", "quartiles", "read_report"]

FORMAT = "esdllm-bench-1"
"""What the JSON calls itself."""


@attrs.frozen
class Quartiles:
    """A median and the quartiles around it."""

    median: float
    low: float
    """a quarter lies below"""
    high: float
    """a quarter lies above"""

    def over(self, number: float) -> Quartiles:
        """Return the quartiles of the values over a number."""
        return Quartiles(self.median / number, self.low / number, self.high / number)


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return median and quartiles; of one value, that value.

    Raises:
        ValueError: there is no value.
    """
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Quartiles(median, low, high)


@attrs.frozen
class KindTimes:
    """The steps of one kind and window, over all rounds."""

    kind: Kind
    window: str
    steps: int
    """of one run"""
    milliseconds: Quartiles
    """of single steps"""
    flops: float
    """of one step, the mean; counted"""
    bytes: float
    """of one step, the mean; counted"""

    @property
    def name(self) -> str:
        """Kind and window, as tables call it."""
        return f"{self.kind}, {self.window}"


@attrs.frozen
class PeakMemory:
    """The most that a run took beside the weights."""

    bytes: int
    how: str
    """what was read"""


@attrs.frozen
class Timing:
    """What one contender took."""

    name: str
    config: Mapping[str, Any]
    bare: bool
    seconds: tuple[float, ...]
    """of a run, round by round"""
    forwards: int
    """of one run"""
    answer_tokens: int | None
    """of one run, up to the first end of text of each row; None if not all of its steps were made"""
    committed: int
    """positions decided in one run, over all rows"""
    compile_seconds: float
    """of the warm-up"""
    flops: int
    """of one run; counted from the plans that were run"""
    memory: PeakMemory | None
    """None if it could not be read"""
    kinds: tuple[KindTimes, ...]
    between_milliseconds: Quartiles
    """of what is between two steps: planning, and reading from the device what planning asks for"""
    waiting: float | None = None
    """share of the time in which the process could have run but others had the processor, the median of the rounds; None if
    the system does not tell"""
    shares: Mapping[str, Mapping[str, float]] | None = None
    """by kind and window, the share of the time of each part; None if not profiled"""

    def rate(self, number: float) -> Quartiles:
        """Return a number per second."""
        per = [number / seconds for seconds in self.seconds]
        return quartiles(per)

    @property
    def milliseconds_a_forward(self) -> Quartiles:
        """A run's time over its forwards."""
        return quartiles(self.seconds).over(max(1, self.forwards) / 1e3)


@attrs.frozen
class Report:
    """All contenders of one benchmark."""

    setting: Setting
    rounds: int
    fresh: bool
    """whether every run had a process of its own"""
    environment: Mapping[str, Any]
    """versions and machine"""
    weights: int
    """bytes"""
    peak: Peak | None
    """None if not measured"""
    timings: tuple[Timing, ...]

    @property
    def first(self) -> Timing:
        """What the others are compared with."""
        return self.timings[0]

    def speedup(self, timing: Timing) -> Quartiles:
        """Return how many times as fast as the first contender it decodes, round by round: tokens decided per second."""
        work = timing.committed / max(1, self.first.committed)
        return quartiles([work * a / b for a, b in zip(self.first.seconds, timing.seconds, strict=True)])

    def flops_ratio(self, timing: Timing) -> float:
        """Return how many times as many FLOPs the first contender takes for as many tokens."""
        work = timing.committed / max(1, self.first.committed)
        return work * self.first.flops / max(1, timing.flops)

    def peak_share(self, timing: Timing) -> float | None:
        """Return FLOPs per second over the measured peak."""
        return timing.rate(timing.flops).median / (self.peak.best.gflops * 1e9) if self.peak else None

    def predicted(self, kind: KindTimes) -> float | None:
        """Return the milliseconds that a step would take at the measured peaks: arithmetic or traffic, whichever is longer."""
        if self.peak is None:
            return None
        roofline = self.peak.roofline
        seconds = max(kind.flops / roofline.gflops, kind.bytes / (roofline.bandwidth or float("inf"))) * 1e-9
        return seconds * 1e3

    def to_dict(self) -> dict[str, Any]:
        """Return what was measured, and beside each contender what follows from it, as plain dicts for JSON."""
        found: dict[str, Any] = {"format": FORMAT, **_CONVERTER.unstructure(self)}
        for timing, told in zip(self.timings, found["timings"], strict=True):
            told["derived"] = {
                "tokens_per_second": None
                if timing.answer_tokens is None
                else attrs.asdict(timing.rate(timing.answer_tokens)),
                "canvas_tokens_per_second": attrs.asdict(timing.rate(timing.committed)),
                "milliseconds_a_forward": attrs.asdict(timing.milliseconds_a_forward),
                "speedup": attrs.asdict(self.speedup(timing)),
                "flops_ratio": self.flops_ratio(timing),
                "peak_share": self.peak_share(timing),
                "predicted_milliseconds": {kind.name: self.predicted(kind) for kind in timing.kinds},
            }
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Report:
        """Return the report of what `to_dict` gave.

        Raises:
            InputError: it is no such report.
        """
        if found.get("format") != FORMAT:
            raise InputError(
                f"the format is {found.get('format')!r}, not '{FORMAT}', as `esdllm bench --json` writes it"
            )
        try:
            return _CONVERTER.structure(found, cls)
        except (cattrs.BaseValidationError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"a part of the report is missing or wrong: {error!r:.200}") from error


def read_report(path: Path) -> Report:
    """Return the report in a file that `esdllm bench --json` wrote.

    Raises:
        InputError: no such file, or no such report in it.
    """
    try:
        found = parse_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}; give what `esdllm bench --json` wrote")
    try:
        return Report.from_dict(found)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


_CONVERTER = cattrs.Converter()
_CONVERTER.register_structure_hook_func(lambda kind: kind == Mapping[str, Any], lambda value, _: dict(value))
