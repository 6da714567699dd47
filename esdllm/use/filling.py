"""Texts with blanks, filled in: those of known lengths together, each of the others by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from esdllm.errors import InputError
from esdllm.interfaces import StepObserver, TextCodec
from esdllm.runtime.engine import Engine
from esdllm.runtime.prompts import seed_list
from esdllm.use.answers import Answers, Infilled
from esdllm.use.blanks import infilled, parse_template
from esdllm.use.lengths import weigh_lengths
from esdllm.use.matching import blank_patterns

__all__ = ["infill_all"]


def infill_all(
    engine: Engine,
    codec: TextCodec,
    texts: Sequence[str],
    seed: int | Sequence[int] | None,
    observers: Sequence[StepObserver],
    patterns: str | Sequence[str | None] | None = None,
) -> Answers:
    """Return texts with their blanks filled in; see `Pipeline.infill`."""
    templates, spec = [parse_template(text) for text in texts], engine.model.spec
    seeds = seed_list(seed, len(texts))
    if len(seeds) != len(texts):
        raise InputError(f"there are {len(seeds)} seeds for {len(texts)} texts; give one, or one per text")
    canvases = [
        template.canvas(codec, spec) for template in templates
    ]  # what is wrong is found before anything is decoded
    kept = [None if patterns is None else blank_patterns(engine, patterns, len(each.lengths)) for each in templates]
    found: dict[int, Infilled] = {}
    forwards, took = 0, 0.0
    if closed := [at for at, template in enumerate(templates) if kept[at] is None and not template.is_open]:
        own = None if seed is None else [seeds[at] for at in closed]
        result = engine.generate([canvases[at][0] for at in closed], infill=True, seed=own, observers=observers)
        forwards, took = result.forwards, result.seconds
        for at, row in zip(closed, result.answers, strict=True):
            spans = canvases[at][1]
            found[at] = infilled(texts[at], templates[at], spans, row, codec, result.forwards, result.seconds)
    for at in sorted({*range(len(texts))} - {*closed}):
        best = weigh_lengths(engine, templates[at], cast(int | None, seeds[at]), observers, kept[at])
        forwards, took = forwards + best.forwards, took + best.seconds
        found[at] = infilled(texts[at], templates[at], best.spans, best.row, codec, best.forwards, best.seconds)
    return Answers(tuple(found[at] for at in range(len(texts))), forwards, took)
