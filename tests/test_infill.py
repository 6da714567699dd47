"""Infilling keeps the user's text: what stands around the blanks comes out as it went in."""

from __future__ import annotations

from collections.abc import Sequence
from html import unescape
from typing import Any

import pytest

from esdllm import Catalogue, InputError, Model, Pipeline, load_model
from esdllm.use.blanks import infilled, parse_template


@pytest.fixture(scope="module")
def tiny() -> Model:
    return load_model("tiny-llada", "cpu")


@pytest.fixture(scope="module")
def pipe(tiny: Model, catalogue: Catalogue) -> Pipeline:
    return Pipeline.of(tiny, catalogue.configure("vanilla", settings={"gen_length": 16, "block_length": 8}), catalogue)


TEXTS = [
    "The smallest number is [MASK:2], or [MASK].",
    "Say <|startoftext|>[MASK:2] and <|endoftext|> and <|eot_id|>.",
    "[MASK:2]",
    "x[MASK][MASK:2] y",
    "<b>&amp; [MASK]</b>\n\n  twice:  [MASK]  .",
    "\t[MASK]\u2028 naïve 日本語 \U0001f600 [MASK:2]\n",
    r"a literal \[MASK:3] and [MASK:1]",
]


@pytest.mark.parametrize("text", TEXTS)
def test_what_stands_around_the_blanks_comes_out_as_it_went_in(pipe: Pipeline, text: str) -> None:
    found = pipe.infill(text)
    rest = found.text
    for piece in filter(None, (piece.strip(" ") for piece in parse_template(text).pieces)):
        assert piece in rest
        rest = rest.partition(piece)[2]
    assert "".join(a + b for a, b in zip(found.pieces, (*found.fills, ""), strict=True)) == found.text
    shown = unescape(found._body().replace('<mark style="background: #c8e6c9">', "").replace("</mark>", ""))
    assert shown == found.text


class Words:
    """A codec whose tokens are words of a list."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        return "".join(self.words[token] for token in ids)


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("The [MASK] sat", [" cat"], "The cat sat"),
        ("The[MASK] sat", [" cat"], "The cat sat"),
        ("The [MASK] sat", ["cat "], "The cat sat"),
        ("The [MASK] sat", ["  cat  "], "The cat sat"),
        ("The [MASK]sat", [" cat "], "The cat sat"),
        ("The [MASK] sat", [""], "The sat"),
        ("The [MASK].", [""], "The ."),
        ("The [MASK] sat", [" "], "The sat"),
        ("The [MASK][MASK] sat", ["", " cat"], "The cat sat"),
        ("The [MASK][MASK] sat", [" big ", " cat"], "The big cat sat"),
        ("if x:\n[MASK]", ["    return"], "if x:\n    return"),
        ("two  [MASK]  spaces", ["a  b"], "two  a  b  spaces"),
    ],
)
def test_no_space_is_doubled_where_a_blank_begins_or_ends(text: str, words: list[str], expected: str) -> None:
    template, blanks = parse_template(text), len(words)
    spans = [range(i, i + 1) for i in range(blanks)]
    found = infilled(text, template, spans, list(range(blanks)), Words(*words), 1, 0.0)  # type: ignore[arg-type]
    assert found.text == expected == "".join(a + b for a, b in zip(found.pieces, (*found.fills, ""), strict=True))


@pytest.mark.parametrize(
    ("text", "pieces", "lengths"),
    [
        (r"\[MASK] [MASK]", ("[MASK] ", ""), (1,)),
        (r"a\[MASK:3]b[MASK:2]c\[mask]", ("a[MASK:3]b", "c[mask]"), (2,)),
        (r"\\[MASK]", ("\\", ""), (1,)),
        (r"\\\[MASK:2]\[MASK][MASK]", (r"\[MASK:2][MASK]", ""), (1,)),
        (r"C:\dir\x [MASK]\n", (r"C:\dir\x ", r"\n"), (1,)),
        (r"\[MASK: 3] is no blank, [MASK] is", ("[MASK: 3] is no blank, ", " is"), (1,)),
    ],
)
def test_a_backslash_makes_a_blank_text_and_a_second_one_itself(
    text: str, pieces: tuple[str, ...], lengths: tuple[int, ...]
) -> None:
    assert parse_template(text) == (pieces, lengths, ())


WRONG: list[tuple[Any, str]] = [
    (r"only \[MASK]", "there is nothing to fill in"),
    ("a [MASK:99999999999]", "the blank at character 2 is longer than any model's context: "),
    (f"a [MASK:{'9' * 5000}]", "the blank at character 2 is longer than any model's context: "),
    ("a [MASK:999999999]", "blanks of 999999999 tokens exceed the model's context of 1024; shorten them"),
    ("a " + "[MASK:1000] " * 2, "blanks of 2000 tokens exceed the model's context of 1024"),
    ("[MASK]" * 20_000, "blanks of 20000 tokens exceed the model's context of 1024"),
    ("word " * 2000 + "[MASK]", "exceed the model's context of 1024"),
    ("a <|mdm_mask|> b [MASK]", "'a <|mdm_mask|> b ' holds the model's mask token, which would be filled in too"),
    ("\udcff [MASK]", "the prompt is not valid UTF-8 at character 0"),
    (3, "a template is a text with blanks, such as 'The .*', not 3"),
    ([3], "a template is a text with blanks, such as 'The .*', not 3"),
    ([b"[MASK]"], "a template is a text with blanks"),
    (None, "a template is a text with blanks"),
    ([], "there is no template; give at least one"),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=lambda value: repr(value)[:24])
def test_what_cannot_be_filled_in_is_refused_in_a_short_line(pipe: Pipeline, text: Any, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("|", r"\|").replace("[", r"\[")) as refused:
        pipe.infill(text)
    assert len(str(refused.value)) < 300
