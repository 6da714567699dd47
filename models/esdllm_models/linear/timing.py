"""How long a model's linear layers take in a step with few positions and in one with many, by kernel: measured in two seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf

import attrs
import torch
from torch import Tensor

from esdllm_models.linear.kernels import COMPUTES
from esdllm_models.linear.layers import Linear

__all__ = ["FEW", "MANY", "Matrix", "Seconds", "measured"]

FEW, MANY = 16, 256
"""positions of a step in which most layers are skipped, and of a refresh"""

_FEW_UNTIL, _MANY_UNTIL = 0.9, 1.5
"""seconds after which no more turns are begun with few rows and with many"""
_MOST = 1 << 23  # weights of a matrix that is tried: more than a cache holds, and few enough to be quick
_TRIED = 64  # rows that are multiplied to tell what MANY take
_TURNS = 7
_LOST = 2.0  # times as slow with few rows as the fastest, from which on a kernel is not tried with many


@attrs.frozen
class Matrix:
    """A matrix of a model, and how often a step multiplies by one of its sizes."""

    outputs: int
    """O"""
    inputs: int
    """I"""
    times: float
    """of a step; of experts, as many as a position goes through"""
    few_rows: bool = False
    """whether it is the head, which no step gives many rows"""
    expert: bool = False
    """whether it is held with others in one tensor"""

    @property
    def weights(self) -> float:
        """What a step reads of such matrices."""
        return self.outputs * self.inputs * self.times


@attrs.frozen
class Seconds:
    """What all linear layers take in a step."""

    few: float
    """with `FEW` positions"""
    many: float | None
    """with `MANY`; None where few were slow enough to tell"""


@attrs.define
class _Trial:
    """One matrix under one kernel: the best times so far."""

    layer: Linear
    rows: Tensor
    few: float = inf
    many: float = inf

    def turn(self, clock: Callable[[], float], few: bool) -> None:
        """Multiply once, by few rows or by many."""
        rows = self.rows[:FEW] if few else self.rows
        started = clock()
        self.layer(rows)
        took = clock() - started
        if few:
            self.few = min(self.few, took)
        else:
            self.many = min(self.many, took)


def measured(matrices: Sequence[Matrix], names: Sequence[str], dtype: torch.dtype) -> dict[str, Seconds]:
    """Return what the linear layers take under kernels, by name.

    The layers' largest matrices are tried first, all kernels in turns, and again as long as there is time; the best time counts.
    What there was no time for is taken to be as fast, by its size, as what was tried. No weight of a model is read.
    """
    began = time.perf_counter()
    every = sorted(matrices, key=lambda matrix: (matrix.few_rows, -matrix.weights))
    with torch.inference_mode():
        trials = list(_made(every, names, dtype, began + _FEW_UNTIL))
        _turns([one for _, own in trials for one in own.values()], True, began + _FEW_UNTIL)
        few = {name: sum(one.few * matrix.weights for matrix, one in _of(name, trials)) for name in names}
        left = [name for name in names if few[name] <= _LOST * min(few.values())]
        rest = [one for name in left for matrix, one in _of(name, trials) if not matrix.few_rows]
        _turns(rest, False, began + _MANY_UNTIL)
    return {name: _told(every, _of(name, trials)) for name in names}


_Trials = Sequence[tuple[Matrix, Mapping[str, _Trial]]]


def _of(name: str, trials: _Trials) -> list[tuple[Matrix, _Trial]]:
    return [(matrix, own[name]) for matrix, own in trials]


def _made(
    matrices: Sequence[Matrix], names: Sequence[str], dtype: torch.dtype, until: float
) -> Iterator[tuple[Matrix, Mapping[str, _Trial]]]:
    """Yield the matrices that differ once they are cut to what is tried, under each kernel, as long as there is time."""
    values = torch.linspace(-0.05, 0.05, _MOST).to(dtype)
    seen: set[tuple[int, int, bool]] = set()
    for matrix in matrices:
        key = _cut(matrix), matrix.inputs, matrix.expert
        if key not in seen and not (seen and time.perf_counter() > until):
            yield matrix, {name: _trial(name, matrix, values) for name in names}
            seen.add(key)


def _cut(matrix: Matrix) -> int:
    """Return how many of a matrix' output features are tried."""
    return min(matrix.outputs, max(1, _MOST // matrix.inputs))


def _trial(name: str, matrix: Matrix, values: Tensor) -> _Trial:
    kernel, outputs, inputs = COMPUTES[name], _cut(matrix), matrix.inputs
    weight = values[: outputs * inputs].view(outputs, inputs)
    layer = kernel.layer(outputs, *kernel.hold(weight)) if matrix.expert else kernel.make(weight, None)
    rows = values[:inputs].repeat(_TRIED, 1).to(kernel.hidden(values.dtype))
    layer(rows[:FEW])  # the first call prepares
    return _Trial(layer, rows)


def _turns(trials: Sequence[_Trial], few: bool, until: float) -> None:
    """Let all take turns, each at least once; the time of one thread counts what that one worked alone."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for turn in range(_TURNS):
        for one in trials:
            if turn == 0 or time.perf_counter() < until:
                one.turn(clock, few)


def _told(matrices: Sequence[Matrix], tried: Sequence[tuple[Matrix, _Trial]]) -> Seconds:
    """Return what all take, each as fast by its size as what was tried of its kind, or else as the largest."""
    few = many = 0.0
    for matrix in matrices:
        alike = [
            (own, one)
            for own, one in tried
            if (own.inputs, own.expert) == (matrix.inputs, matrix.expert) and own.few_rows <= matrix.few_rows
        ]
        own, one = min(alike or tried[:1], key=lambda pair: abs(_cut(pair[0]) - _cut(matrix)))
        share = matrix.weights / (_cut(own) * own.inputs)
        few += share * one.few
        many += share * (one.few if matrix.few_rows else one.many * MANY / _TRIED)
    return Seconds(few, many if many < inf else None)
