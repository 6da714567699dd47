"""Two reports of one benchmark, made with other versions or on another machine: what changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import attrs

from esdllm.errors import InputError
from esdllm.measure.benchmarking.report import Quartiles, Report, Timing, quartiles

__all__ = ["Change", "Comparison", "compare"]


@attrs.frozen
class Change:
    """One contender in both reports. Ratios are the second's over the first's: below 1 is faster, or smaller."""

    name: str
    seconds: Quartiles
    """of a run, over all pairs of a round of one and a round of the other"""
    kinds: Mapping[str, float]
    """of a step's median, by kind and window"""
    memory: float | None
    """None if one of them has none"""


@attrs.frozen
class Comparison:
    """What changed from one report to the other."""

    environment: Mapping[str, tuple[Any, Any]]
    """what differs of versions and machine"""
    changes: tuple[Change, ...]


def compare(before: Report, after: Report) -> Comparison:
    """Return what changed.

    Raises:
        InputError: the two did not measure the same; names all in which they differ.
    """
    if differing := list(_differences(before, after)):
        raise InputError(f"the reports did not measure the same: {'; '.join(differing)}")
    names = sorted({*before.environment, *after.environment})
    pairs = {name: (before.environment.get(name), after.environment.get(name)) for name in names}
    return Comparison(
        {name: pair for name, pair in pairs.items() if pair[0] != pair[1]},
        tuple(_change(a, b) for a, b in zip(before.timings, after.timings, strict=True)),
    )


def _change(before: Timing, after: Timing) -> Change:
    ratios = [b / a for a, b in product(before.seconds, after.seconds)]
    then = {kind.name: kind.milliseconds.median for kind in before.kinds}
    kinds = {kind.name: kind.milliseconds.median / then[kind.name] for kind in after.kinds if kind.name in then}
    both = before.memory and after.memory and before.memory.how == after.memory.how and before.memory.bytes
    memory = after.memory.bytes / before.memory.bytes if both and before.memory and after.memory else None
    return Change(after.name, quartiles(ratios), kinds, memory)


def _differences(before: Report, after: Report) -> Iterator[str]:
    """Yield in what the two differ of what was measured."""
    for field in attrs.fields(type(before.setting)):
        yield from _differs(field.name, getattr(before.setting, field.name), getattr(after.setting, field.name))
    yield from _differs("fresh", before.fresh, after.fresh)
    for name in ("dtype", "spec"):  # of a checkpoint, which the setting only names
        yield from _differs(name, before.environment.get(name), after.environment.get(name))
    names, others = ([timing.name for timing in report.timings] for report in (before, after))
    yield from _differs("contenders", names, others)
    if names == others:
        for a, b in zip(before.timings, after.timings, strict=True):
            for key in sorted({*a.config, *b.config}):
                yield from _differs(f"{a.name}'s {key}", a.config.get(key), b.config.get(key))


def _differs(name: str, before: Any, after: Any) -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            yield from _differs(f"{name} {key}", before.get(key), after.get(key))
    elif _plain(before) != _plain(after):
        yield f"{name} {_plain(before)} against {_plain(after)}"


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return [_plain(one) for one in value] if isinstance(value, Sequence) and not isinstance(value, str) else value
