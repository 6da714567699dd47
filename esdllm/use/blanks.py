"""Templates with blanks: `The [MASK:4] sat on the [MASK:2-6].`

What stands around the blanks comes out as it went in. A backslash makes a blank text, `\\[MASK]`, and a second one itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from esdllm.checkpoints.text import check_unicode
from esdllm.errors import ContextError, InputError, brief
from esdllm.interfaces import TextCodec
from esdllm.use.answers import Infilled
from esdllm.views import ModelSpec

__all__ = ["MOST_LENGTHS", "Filled", "Template", "encoded", "filled", "infilled", "parse_template"]

_ANY = re.compile(r"(\\*)(\[\s*mask\b[^\]\[]*\]?)", re.IGNORECASE)
_BLANK = re.compile(r"\[MASK(?::([1-9]\d*)(?:-([1-9]\d*))?)?\]")
_WRITE = "write [MASK:4] where 4 tokens are missing, [MASK] for one, [MASK:2-6] where it is not known how many"
_EXAMPLE = "The [MASK:4] sat on the [MASK:2]."
MOST_LENGTHS = 64
"""lengths that a blank may have"""
_DIGITS = 9  # of a blank's length: more tokens than any model's context


class Template(NamedTuple):
    """A text with blanks."""

    pieces: tuple[str, ...]
    """what stands around the blanks, one more than there are blanks"""
    lengths: tuple[int, ...]
    """tokens of each blank; the least of one whose length is not known"""
    ranges: tuple[range, ...] = ()
    """the lengths that each blank may have; empty where all are known"""

    @property
    def is_open(self) -> bool:
        """Whether the length of a blank is not known."""
        return any(len(lengths) > 1 for lengths in self.ranges)

    def of_lengths(self, lengths: Sequence[int]) -> Template:
        """Return the template with blanks of these lengths."""
        return Template(self.pieces, tuple(lengths))

    def canvas(self, codec: TextCodec, spec: ModelSpec) -> tuple[list[int], tuple[range, ...]]:
        """Return the tokens of the text, masks at its blanks, and the columns of each blank.

        Raises:
            InputError: the blanks are longer than the model's context; the text holds the model's mask token.
        """
        if (blank := sum(self.lengths)) > spec.context:
            raise ContextError(f"blanks of {blank} tokens exceed the model's context of {spec.context}; shorten them")
        tokens = encoded(self.pieces[0], codec, spec.mask_id)
        spans = []
        for length, piece in zip(self.lengths, self.pieces[1:], strict=True):
            spans.append(range(len(tokens), len(tokens) + length))
            tokens += [spec.mask_id] * length + encoded(piece, codec, spec.mask_id)
        return tokens, tuple(spans)


def encoded(piece: str, codec: TextCodec, mask: int) -> list[int]:
    """Return the tokens of a text that is to stay."""
    tokens = codec.encode(piece) if piece else []
    if mask in tokens:
        raise InputError(
            f"{brief(piece)} holds the model's mask token, which would be filled in too; write [MASK] where a token is missing"
        )
    return tokens


def parse_template(text: str) -> Template:
    """Return a text's template.

    [MASK:n] is a blank of n tokens, [MASK] of one, [MASK:n-m] of n to m, and \\[MASK] the text [MASK].

    Raises:
        InputError: there is no blank, or one is written wrongly; it is no text.
    """
    if not isinstance(text, str):
        raise InputError(f"a template is a text with blanks, such as {_EXAMPLE!r}, not {brief(text)}")
    check_unicode("the prompt", text)
    pieces, ranges, piece, start = [], [], "", 0
    for found in _ANY.finditer(text):
        slashes, written = found.groups()
        piece += text[start : found.start()] + slashes[: len(slashes) // 2]
        start = found.end()
        if len(slashes) % 2:
            piece += written
            continue
        pieces.append(piece)
        ranges.append(_lengths(written, found.start(2)))
        piece = ""
    if not ranges:
        raise InputError(f'there is nothing to fill in in {brief(text)}; {_WRITE}, such as "{_EXAMPLE}"')
    template = Template((*pieces, piece + text[start:]), tuple(lengths.start for lengths in ranges), tuple(ranges))
    return template if template.is_open else template._replace(ranges=())


def _lengths(written: str, at: int) -> range:
    """Return the lengths, in tokens, that a blank which stands at a character of its text may have."""
    blank = _BLANK.fullmatch(written)
    if blank is None:
        raise InputError(
            f"'{written:.80}' at character {at} is no blank; {_WRITE}, or \\{written:.80} for the text itself"
        )
    if max(len(number or "") for number in blank.groups()) > _DIGITS:
        raise InputError(f"the blank at character {at} is longer than any model's context: {written:.80}")
    least = int(blank[1] or 1)
    lengths = range(least, int(blank[2] or least) + 1)
    if not 1 <= len(lengths) <= MOST_LENGTHS:
        raise InputError(
            f"the blank at character {at} has {max(0, len(lengths))} lengths to choose from: {written:.80}; give the least "
            f"first, and {MOST_LENGTHS} lengths at most"
        )
    return lengths


class Filled(NamedTuple):
    """A template with what came into its blanks."""

    text: str
    """the whole"""
    fills: tuple[str, ...]
    """what came into each blank, without a space that stands before or after the blank already"""
    pieces: tuple[str, ...]
    """what stands around the blanks"""


def filled(template: Template, spans: Sequence[range], row: Sequence[int], codec: TextCodec) -> Filled:
    """Return what came out of a template's canvas, `row` its tokens and `spans` the columns of its blanks."""
    pieces, fills, whole = list(template.pieces), [], template.pieces[0]
    for number, span in enumerate(spans, 1):
        fill = codec.decode(row[span.start : span.stop])
        fill = fill.lstrip(" ") if whole.endswith(" ") else fill
        fill = fill.rstrip(" ") if pieces[number].startswith(" ") else fill
        if not fill and whole.endswith(" "):
            pieces[number] = pieces[number].removeprefix(" ")
        whole += fill + pieces[number]
        fills.append(fill)
    return Filled(whole, tuple(fills), tuple(pieces))


def infilled(
    text: str,
    template: Template,
    spans: Sequence[range],
    row: Sequence[int],
    codec: TextCodec,
    forwards: int,
    seconds: float,
) -> Infilled:
    """Return a template's answer; see `filled`. The blanks' lengths are those of `spans`."""
    found = filled(template, spans, row, codec)
    return Infilled(
        prompt=text,
        text=found.text,
        tokens=tuple(row[i] for span in spans for i in span),
        forwards=forwards,
        seconds=seconds,
        fills=found.fills,
        pieces=found.pieces,
        lengths=tuple(map(len, spans)),
    )
