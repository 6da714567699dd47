"""Blanks of unknown length: every length is filled in, and the model weighs what came of each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import NamedTuple

from esdllm.errors import InputError
from esdllm.interfaces import StepObserver
from esdllm.runtime.engine import Engine
from esdllm.use.blanks import MOST_LENGTHS, Template
from esdllm.use.incoming import codec_of
from esdllm.use.matching import BlankPatterns
from esdllm.use.passes import check_sees_all, masked_log_probs

__all__ = ["Weighed", "weigh_lengths"]

_AT_ONCE = 64  # rows of a forward that weighs


class Weighed(NamedTuple):
    """A template whose blanks have the lengths that the model holds for the likeliest."""

    spans: tuple[range, ...]
    """the columns of each blank"""
    row: tuple[int, ...]
    """the tokens of the whole, filled in"""
    forwards: int
    """of the runs that filled in every length, and of the passes that weighed them"""
    seconds: float
    """wall-clock time of the runs' steps"""

    @property
    def lengths(self) -> tuple[int, ...]:
        """The tokens of each blank."""
        return tuple(map(len, self.spans))


class _Variant(NamedTuple):
    """A template with certain lengths, filled in."""

    row: list[int]
    spans: tuple[range, ...]


def weigh_lengths(
    engine: Engine,
    template: Template,
    seed: int | None = None,
    observers: Sequence[StepObserver] = (),
    patterns: BlankPatterns | None = None,
) -> Weighed:
    """Return a template filled in, its blanks of the lengths under which the given text is likeliest.

    Each choice of lengths is decoded, all as one batch. Its weight is the sum, over its blanks, of the log-probabilities of the
    tokens next to the blank on either side, each masked by itself in the filled text: where a fill is cut short or drawn out,
    what was given beside it becomes unlikely. Where the text ends with a blank, its end (`eos_id`) is what comes next. Of equal
    weights the shortest wins. Where there are more than 64 choices, lengths are weighed blank by blank from the left, the others
    halfway, and once more with what was found.

    Source: our own. Confidence at the first step, the signal of CAL (arXiv 2602.00476), finds far fewer of the right lengths with
    the shipped checkpoints (docs/canvas.md).

    Where blanks are to match `patterns`, only lengths that can are tried, each by itself.

    Raises:
        InputError: the model is block-causal; a canvas cannot be decoded; no length can match the patterns.
    """
    if template.is_open:
        check_sees_all(engine, "a blank of unknown length")
    work = _Work(engine, template, seed, observers, patterns)
    choices = _choices(template, patterns)
    if prod(map(len, choices)) <= MOST_LENGTHS:
        best = work.best(list(product(*choices)))
    else:
        lengths = [each[len(each) // 2] for each in choices]
        for blank in [at for _ in range(2) for at, each in enumerate(choices) if len(each) > 1]:
            best = work.best([(*lengths[:blank], length, *lengths[blank + 1 :]) for length in choices[blank]])
            lengths = [*map(len, best.spans)]
    return Weighed(best.spans, tuple(best.row), work.forwards, work.seconds)


def _choices(template: Template, patterns: BlankPatterns | None) -> list[list[int]]:
    """Return the lengths that each blank may have."""
    told = template.ranges or [range(length, length + 1) for length in template.lengths]
    found = [list(each) if patterns is None else patterns.fitting(at, each) for at, each in enumerate(told)]
    if [] in found:
        at = found.index([])
        lengths = " or ".join(map(str, sorted({told[at][0], told[at][-1]})))
        raise InputError(
            f"no text of {lengths} tokens, nor of what lies between, matches the pattern of blank {at}; give other lengths"
        )
    return found


class _Work:
    """Fills in and weighs choices of lengths, and counts what that takes."""

    def __init__(
        self,
        engine: Engine,
        template: Template,
        seed: int | None,
        observers: Sequence[StepObserver],
        patterns: BlankPatterns | None,
    ) -> None:
        self._engine, self._template, self._codec = engine, template, codec_of(engine.model)
        self._seed, self._observers, self._patterns = seed, observers, patterns
        self.forwards, self.seconds = 0, 0.0

    def best(self, choices: Sequence[Sequence[int]]) -> _Variant:
        """Return the likeliest of several choices of lengths, filled in."""
        spec = self._engine.model.spec
        made = [self._template.of_lengths(lengths).canvas(self._codec, spec) for lengths in choices]
        rows = self._generate(made)
        variants = [_Variant(row, spans) for row, (_, spans) in zip(rows, made, strict=True)]
        if len(variants) == 1:
            return variants[0]
        weights = self._weights(variants)
        return variants[max(range(len(variants)), key=lambda at: (weights[at], -len(variants[at].row)))]

    def _generate(self, made: Sequence[tuple[list[int], tuple[range, ...]]]) -> list[list[int]]:
        """Return canvases filled in: all together, or where they keep to patterns each by itself."""
        parts = [made] if self._patterns is None else [[each] for each in made]
        rows = []
        for part in parts:
            constraint = None if self._patterns is None else self._patterns.constraint(part[0][1])
            result = self._engine.generate(
                [tokens for tokens, _ in part],
                infill=True,
                seed=self._seed,
                observers=self._observers,
                constraint=constraint,
            )
            if self._patterns is not None:
                self._patterns.check(result.answers[0], part[0][1])
            rows += result.answers
            self.forwards += result.forwards
            self.seconds += result.seconds
        return rows

    def _weights(self, variants: Sequence[_Variant]) -> list[float]:
        """Return the weight of each variant, in nats."""
        spec = self._engine.model.spec
        asked: list[tuple[int, list[int], int, int]] = []
        for number, variant in enumerate(variants):
            row = variant.row if variant.spans[-1].stop < len(variant.row) else [*variant.row, spec.eos_id]
            filled = {column for span in variant.spans for column in span}
            beside = {column for span in variant.spans for column in (span.start - 1, span.stop)} - filled
            asked += [
                (number, [*row[:column], spec.mask_id, *row[column + 1 :]], column, row[column])
                for column in sorted(beside)
                if column >= spec.logit_shift  # before that the model says nothing
            ]
        weights = [0.0] * len(variants)
        for first in range(0, len(asked), _AT_ONCE):
            part = asked[first : first + _AT_ONCE]
            found = masked_log_probs(
                self._engine, [row for _, row, _, _ in part], [[column] for _, _, column, _ in part]
            )
            self.forwards += 1
            for (number, _, _, token), log_probs in zip(part, found, strict=True):
                weights[number] += float(log_probs[0, token])
        return weights
