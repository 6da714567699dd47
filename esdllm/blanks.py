"""Templates with blanks: `The [MASK:4] sat on the [MASK:2].`"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from esdllm.answers import Infilled
from esdllm.errors import InputError
from esdllm.interfaces import TextCodec
from esdllm.records import Generation

__all__ = ["Template", "infilled", "parse_template"]

_ANY = re.compile(r"\[\s*mask\b[^\]\[]*\]?", re.IGNORECASE)
_BLANK = re.compile(r"\[MASK(?::([1-9]\d*))?\]")
_EXAMPLE = "The [MASK:4] sat on the [MASK:2]."


class Template(NamedTuple):
    """A text with blanks."""

    pieces: tuple[str, ...]
    """what stands around the blanks, one more than there are blanks"""
    lengths: tuple[int, ...]
    """tokens of each blank"""

    def canvas(self, codec: TextCodec, mask: int) -> tuple[list[int], tuple[range, ...]]:
        """Return the tokens of the text, `mask` at its blanks, and the columns of each blank."""
        tokens = codec.encode(self.pieces[0]) if self.pieces[0] else []
        spans = []
        for length, piece in zip(self.lengths, self.pieces[1:], strict=True):
            spans.append(range(len(tokens), len(tokens) + length))
            tokens += [mask] * length + (codec.encode(piece) if piece else [])
        return tokens, tuple(spans)


def parse_template(text: str) -> Template:
    """Return a text's template: [MASK:n] is a blank of n tokens, [MASK] of one.

    Raises:
        InputError: there is no blank, or one is written wrongly.
    """
    pieces, lengths, start = [], [], 0
    for found in _ANY.finditer(text):
        blank = _BLANK.fullmatch(found[0])
        if blank is None:
            raise InputError(
                f"'{found[0]}' at character {found.start()} is no blank; write [MASK:4] where 4 tokens are missing, "
                "[MASK] for one"
            )
        pieces.append(text[start : found.start()])
        lengths.append(int(blank[1] or 1))
        start = found.end()
    if not lengths:
        raise InputError(
            f"there is nothing to fill in in {text!r:.80}; write [MASK:4] where 4 tokens are missing, [MASK] for one, "
            f'such as "{_EXAMPLE}"'
        )
    return Template((*pieces, text[start:]), tuple(lengths))


def infilled(
    text: str, template: Template, spans: Sequence[range], row: Sequence[int], codec: TextCodec, result: Generation
) -> Infilled:
    """Return what came out of a template's canvas, `row` its tokens."""
    return Infilled(
        prompt=text,
        text=codec.decode(row),
        tokens=tuple(row[i] for span in spans for i in span),
        forwards=result.forwards,
        seconds=result.seconds,
        fills=tuple(codec.decode(row[span.start : span.stop]) for span in spans),
        pieces=template.pieces,
    )
