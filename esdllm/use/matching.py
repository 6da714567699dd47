"""Answers and blanks that match a pattern."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from esdllm.errors import InputError, PluginError, brief
from esdllm.interfaces import TokenSampler
from esdllm.runtime.engine import Engine
from esdllm.runtime.prompts import prepare
from esdllm.use.answers import Answer
from esdllm.use.automata import Automaton, automaton
from esdllm.use.incoming import codec_of, one, shown
from esdllm.use.keeping import KeepingSampler, Kept
from esdllm.use.schemas import pattern_of_schema

__all__ = ["BlankPatterns", "blank_patterns", "match"]


@attrs.frozen(eq=False)
class BlankPatterns:
    """What each blank of a text is to match."""

    automata: tuple[Automaton | None, ...]
    """of each blank; None where anything goes"""
    logit_shift: int

    def fitting(self, blank: int, lengths: Sequence[int]) -> list[int]:
        """Return those lengths of which a blank can match."""
        wanted = self.automata[blank]
        return [length for length in lengths if wanted is None or wanted.fits(length)]

    def constraint(self, spans: Sequence[range]) -> Callable[[TokenSampler], TokenSampler]:
        """Return what makes a sampler of a run keep to them, where the blanks are the columns `spans` of its row."""
        kept = [Kept(span, each) for span, each in zip(spans, self.automata, strict=True) if each is not None]
        return lambda inner: KeepingSampler(inner, tuple(kept), self.logit_shift)

    def check(self, row: Sequence[int], spans: Sequence[range]) -> None:
        """Return if a row's blanks match.

        Raises:
            PluginError: one does not: a component has committed what was no candidate.
        """
        for span, each in zip(spans, self.automata, strict=True):
            if each is not None and not each.accepts(row[span.start : span.stop]):
                raise PluginError(
                    "a text that was to match a pattern does not: a component commits tokens that are no candidates; check it "
                    "with esdllm.testing"
                )


def blank_patterns(engine: Engine, patterns: str | Sequence[str | None], blanks: int) -> BlankPatterns:
    """Return what blanks are to match: one pattern for all of them, or one per blank.

    Raises:
        InputError: there are more or fewer patterns than blanks; one is none; the sampler draws.
        UnavailableError: outlines-core is not installed.
    """
    told = [patterns] * blanks if isinstance(patterns, str) else list(patterns)
    if len(told) != blanks:
        raise InputError(
            f"there are {len(told)} patterns for {blanks} blanks; give one, or one per blank (None for any text)"
        )
    return BlankPatterns(
        tuple(None if pattern is None else _automaton(engine, pattern) for pattern in told),
        engine.model.spec.logit_shift,
    )


def _automaton(engine: Engine, pattern: str, ends: tuple[int, ...] = ()) -> Automaton:
    model = engine.model
    drawn = engine.config.sampler.options.get("temperature", 0)
    if drawn:
        raise InputError(
            f"sampler.temperature = {brief(drawn)}: what matches a pattern is the most probable text; set it to 0"
        )
    return automaton(pattern, codec_of(model), model.spec.vocab, ends).to(model.adapter.device)


def match(
    engine: Engine,
    prompt: Any,
    pattern: str | None,
    schema: str | Mapping[str, Any] | None,
    chat: bool | None,
    seed: int | None,
) -> Answer:
    """Return an answer that matches; see `Pipeline.match`."""
    if (pattern is None) is (schema is None):
        raise InputError("give either a pattern or a schema that the answer is to match")
    pattern = pattern_of_schema(schema) if schema is not None else str(pattern)
    model, length, prompt = engine.model, engine.config.gen_length, one(prompt)
    prepared = prepare(model, [prompt], None, length, False, chat)
    start = prepared.starts[0]
    wanted = BlankPatterns((_automaton(engine, pattern, model.stop_ids),), model.spec.logit_shift)
    if not wanted.fitting(0, [length]):
        raise InputError(f"no text of {length} tokens or fewer matches {brief(pattern)}; give a larger gen_length")
    ids, span = prepared.tokens[0, :start].tolist(), range(start, start + length)
    result = engine.generate([ids], seed=seed, constraint=wanted.constraint([span]))
    wanted.check(result.answers[0], [range(len(result.answers[0]))])
    text = codec_of(model).decode(result.answers[0])
    return Answer(shown(prompt), text, tuple(result.answers[0]), result.forwards, result.seconds)
