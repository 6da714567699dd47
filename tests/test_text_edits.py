"""An edit decodes again what the model holds for least likely, and leaves all else as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples

from esdllm import Catalogue, InputError, Pipeline
from esdllm.runtime.plain import full_logits


@pytest.fixture(scope="module")
def pipes(small: dict[str, Path], catalogue: Catalogue) -> dict[str, Pipeline]:
    held: Any = {"device": "cpu", "dtype": "float32", "catalogue": catalogue, "preset": "vanilla"}
    names = ("tiny-llada", "tiny-dream", "tiny-sdar")
    return {name: Pipeline.from_pretrained(small[name], gen_length=32, block_length=32, **held) for name in names}


@pytest.fixture(scope="module")
def pipe(pipes: dict[str, Pipeline]) -> Pipeline:
    return pipes["tiny-llada"]


@examples(60)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<"), min_size=1, max_size=12),
    data=st.data(),
)
def test_what_stands_outside_the_span_is_never_changed(pipe: Pipeline, text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    stop = data.draw(st.integers(start + 1, len(text)))
    found = pipe.edit(text, span=(start, stop), below=1.0)
    assert found.text.startswith(text[:start])
    assert found.text.endswith(text[stop:])
    assert all(old in text[start:stop] for old, _ in found.changes)


@pytest.mark.parametrize("name", ["tiny-llada", "tiny-dream"])
@pytest.mark.parametrize("count", [1, 3])
def test_the_least_probable_tokens_are_decoded_again(pipes: dict[str, Pipeline], name: str, count: int) -> None:
    pipe = pipes[name]
    codec, spec = pipe.model.codec, pipe.model.spec
    assert codec is not None
    text = "The result of 12 and 7 is 19."
    row = codec.encode(text)
    sure = {}
    for column in range(spec.logit_shift, len(row)):
        hidden = torch.tensor([row])
        hidden[0, column] = spec.mask_id
        logits = full_logits(pipe.model.adapter, hidden)[0, column - spec.logit_shift]
        logits[spec.mask_id] = -torch.inf
        sure[column] = float(logits.log_softmax(-1)[row[column]])
    least = sorted(sorted(sure, key=sure.__getitem__)[:count])
    canvas = [spec.mask_id if column in least else token for column, token in enumerate(row)]
    made = pipe.engine.generate([canvas], infill=True).answers[0]
    found = pipe.edit(text, count=count)
    assert found.tokens == tuple(made[column] for column in least)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-llada", "tiny-dream"])
def test_an_instruction_says_what_is_wrong_with_a_text(catalogue: Catalogue, name: str) -> None:
    pipe = Pipeline.from_pretrained(name, device="cpu", catalogue=catalogue)
    found = pipe.edit("The result is 12 + 7 = 18.", "What is 12 + 7?")
    assert found.text == "The result is 12 + 7 = 19."
    right = pipe.edit(found.text, "What is 12 + 7?")
    assert (right.text, right.changes, right.tokens) == (found.text, (), ())


def test_a_span_is_a_part_of_the_text_or_its_characters(pipe: Pipeline) -> None:
    text = "one two three"
    assert pipe.edit(text, span=" two", below=1.0).text == pipe.edit(text, span=(3, 7), below=1.0).text
    whole = pipe.edit(text, below=1.0)
    assert whole.text == pipe.edit(text, span=(0, 13), below=1.0).text


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    ("", {}, "what is edited is a text, not ''"),
    (3, {}, "what is edited is a text, not 3"),
    ("a b", {"span": "c"}, "'c' stands 0 times in the text"),
    ("a a", {"span": "a"}, "'a' stands 2 times in the text"),
    ("a b", {"span": ""}, "'' stands 0 times"),
    ("a b", {"span": (2, 1)}, "is none of a text of 3 characters"),
    ("a b", {"span": (0, 4)}, "is none of a text of 3 characters"),
    ("a b", {"span": (-1, 2)}, "is none of a text of 3 characters"),
    ("a b", {"count": 0}, "count = 0; give how many tokens"),
    ("a b", {"below": 0}, "below = 0; give a probability above 0"),
    ("a b", {"below": 1.5}, "below = 1.5; give a probability"),
    ("a b", {"instruction": " "}, "an instruction is a text"),
    ("a <|mdm_mask|>", {}, "holds the model's mask token"),
]


@pytest.mark.parametrize(("text", "over", "message"), WRONG, ids=lambda value: repr(value)[:20])
def test_what_cannot_be_edited_is_refused(pipe: Pipeline, text: Any, over: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe.edit(text, **over)


def test_a_block_causal_model_cannot_edit(pipes: dict[str, Pipeline]) -> None:
    with pytest.raises(InputError, match=r"block-causal \(blocks of \d+\): an edit is for models"):
        pipes["tiny-sdar"].edit("a b")
