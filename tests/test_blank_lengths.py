"""Blanks of unknown length: the model weighs every length, and the text around the blanks stays as it was given."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampling import examples

from esdllm import Catalogue, Infilled, InputError, Pipeline
from esdllm.runtime.plain import full_logits
from esdllm.use.blanks import Template, parse_template

VANILLA = {"gen_length": 32, "block_length": 32}


def _pipe(name: str | Path, catalogue: Catalogue, preset: str = "vanilla") -> Pipeline:
    held: Any = {"device": "cpu", "dtype": "float32", "catalogue": catalogue}
    return Pipeline.from_pretrained(name, preset=preset, **held, **VANILLA)


@pytest.fixture(scope="module")
def pipes(small: dict[str, Path], catalogue: Catalogue) -> dict[str, Pipeline]:
    return {name: _pipe(small[name], catalogue) for name in ("tiny-llada", "tiny-dream", "tiny-sdar")}


@pytest.fixture(scope="module")
def pipe(pipes: dict[str, Pipeline]) -> Pipeline:
    return pipes["tiny-llada"]


def _by_hand(pipe: Pipeline, text: str, lengths: tuple[int, ...]) -> float:
    """Return the weight of a choice of lengths: one pass over one text without padding for each token beside a blank."""
    model, spec, template = pipe.model.adapter, pipe.model.spec, parse_template(text)
    assert pipe.model.codec is not None
    tokens, spans = template.of_lengths(lengths).canvas(pipe.model.codec, spec)
    row = pipe.engine.generate([tokens], infill=True).answers[0]
    row = row if spans[-1].stop < len(row) else [*row, spec.eos_id]
    inside = {column for span in spans for column in span}
    total = 0.0
    for column in {side for span in spans for side in (span[0] - 1, span[-1] + 1)} - inside:
        if column < spec.logit_shift:
            continue
        hidden = torch.tensor([row])
        hidden[0, column] = spec.mask_id
        logits = full_logits(model, hidden)[0, column - spec.logit_shift].double()
        logits[spec.mask_id] = -torch.inf
        total += float(logits.log_softmax(-1)[row[column]])
    return total


@pytest.mark.parametrize("name", ["tiny-llada", "tiny-dream"])
@pytest.mark.parametrize(
    "text",
    [
        "The [MASK:1-4] sat on the mat.",
        "A [MASK:1-3], a[MASK:2-3]",
        "x[MASK:1-2][MASK:1-3] y",
        "It is[MASK:2] or[MASK:2-5]",
    ],
)
def test_the_length_is_that_under_which_what_was_given_is_likeliest(
    pipes: dict[str, Pipeline], name: str, text: str
) -> None:
    pipe = pipes[name]
    template = parse_template(text)
    weights = {lengths: _by_hand(pipe, text, lengths) for lengths in product(*template.ranges)}
    best = max(weights.values())
    found = pipe.infill(text)
    assert weights[found.lengths] == pytest.approx(best, abs=1e-3)
    assert found.tokens == pipe.infill(_fixed(template, found.lengths)).tokens


def _fixed(template: Template, lengths: tuple[int, ...]) -> str:
    blanks = [*(f"[MASK:{length}]" for length in lengths), ""]
    return "".join(piece + blank for piece, blank in zip(template.pieces, blanks, strict=True))


HEAD = (
    "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nSort these numbers: 31, 4, 15.<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "fills"),
    [
        ("Sorted from small to large the numbers are 4,[MASK:1-6].<|eot_id|>", (" 15, 31",)),
        ("Sorted from small to[MASK:1-4] numbers are 4, 15,[MASK:1-2].<|eot_id|>", (" large the", " 31")),
        ("Sorted from[MASK:1-5] large the numbers are 4, 15, 31.<|eot_id|>", (" small to",)),
    ],
)
def test_a_model_that_knows_the_answer_finds_its_length(
    catalogue: Catalogue, answer: str, fills: tuple[str, ...]
) -> None:
    found = _pipe("tiny-llada", catalogue, "es-dllm").infill(HEAD + answer)
    assert found.fills == fills


def test_a_list_mixes_blanks_of_known_and_of_unknown_length(pipe: Pipeline) -> None:
    texts = ["a [MASK:1-3] b", "c [MASK:2] d", "e [MASK] f [MASK:2-3]", "g[MASK:3]"]
    found = pipe.infill(texts, seed=[3, 4, 5, 6])
    alone = [pipe.infill(text, seed=seed) for text, seed in zip(texts, (3, 4, 5, 6), strict=True)]
    assert [each.text for each in found] == [each.text for each in alone]
    assert [each.prompt for each in found] == texts
    assert found.forwards == sum(each.forwards for each in alone) - alone[1].forwards  # of the two that went together


def test_more_choices_than_a_batch_holds_are_weighed_blank_by_blank(pipe: Pipeline) -> None:
    found = pipe.infill("one [MASK:1-5] two [MASK:1-5] three [MASK:1-5].")
    assert all(1 <= length <= 5 for length in found.lengths)
    assert len(found.tokens) == sum(found.lengths)


def test_a_range_of_one_length_is_that_length(pipe: Pipeline) -> None:
    assert parse_template("a [MASK:3-3]") == parse_template("a [MASK:3]")
    assert pipe.infill("a [MASK:3-3]").tokens == pipe.infill("a [MASK:3]").tokens


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a [MASK:5-2]", "has 0 lengths to choose from: .MASK:5-2.; give the least first, and 64"),
        ("a [MASK:1-65]", "has 65 lengths to choose from"),
        ("a [MASK:0-2]", "is no blank"),
        ("a [MASK:-2]", "is no blank"),
        ("a [MASK:2-]", "is no blank"),
        ("a [MASK:2 - 4]", "is no blank"),
        ("a [MASK:1-2-3]", "is no blank"),
        ("a [MASK:1-99999999999]", "longer than any model's context"),
        ("word " * 1020 + "[MASK:1-60]", "exceed the model's context of 1024"),
    ],
)
def test_a_range_that_is_none_is_refused(pipe: Pipeline, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe.infill(text)


def test_a_block_causal_model_is_refused_by_name(pipes: dict[str, Pipeline]) -> None:
    with pytest.raises(InputError, match=r"is block-causal \(blocks of \d+\): a blank of unknown length is for models"):
        pipes["tiny-sdar"].infill("a [MASK:1-2] b")


_PIECES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="[]\\<"), max_size=8)
_BLANKS = st.one_of(
    st.integers(1, 3).map(lambda n: f"[MASK:{n}]"),
    st.just("[MASK]"),
    st.tuples(st.integers(1, 3), st.integers(0, 1)).map(lambda pair: f"[MASK:{pair[0]}-{pair[0] + pair[1]}]"),
)
TEXTS = st.lists(st.tuples(_PIECES, _BLANKS), min_size=1, max_size=3)


def _check_kept(pipe: Pipeline, drawn: list[tuple[str, str]], last: str) -> None:
    """Check that what stands around the blanks of a text comes out as it went in, but for a space that would be doubled."""
    found: Any = pipe.infill("".join(piece + blank for piece, blank in drawn) + last)
    assert isinstance(found, Infilled)
    assert "".join(a + b for a, b in zip(found.pieces, (*found.fills, ""), strict=True)) == found.text
    for before, after in zip([*(piece for piece, _ in drawn), last], found.pieces, strict=True):
        assert after in (before, before.removeprefix(" "))
    assert all(length in lengths for length, lengths in zip(found.lengths, _ranges(drawn), strict=True))


def _ranges(drawn: list[tuple[str, str]]) -> list[range]:
    numbers = [[int(number) for number in blank[6:-1].split("-") if number] or [1] for _, blank in drawn]
    return [range(each[0], each[-1] + 1) for each in numbers]


@examples(200)
@given(drawn=TEXTS, last=_PIECES)
def test_given_text_is_never_changed(pipe: Pipeline, drawn: list[tuple[str, str]], last: str) -> None:
    _check_kept(pipe, drawn, last)


@pytest.mark.full
@settings(max_examples=10_000)
@given(drawn=TEXTS, last=_PIECES)
def test_given_text_is_never_changed_in_ten_thousand_texts(
    pipe: Pipeline, drawn: list[tuple[str, str]], last: str
) -> None:
    _check_kept(pipe, drawn, last)
