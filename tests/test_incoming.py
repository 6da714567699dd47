"""What people pass as prompts is decoded as the plain lists that it stands for, or an error says what to pass."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from esdllm import InputError, Model, Pipeline, load_model
from esdllm.errors import known
from esdllm.use.incoming import prompt_list

TURN = {"role": "user", "content": "hi"}
IDS = [[1, 2, 3], [4, 5, 6]]


def told(value: object, most: int = 30) -> str:
    """Return what stands for a value in a test's name, the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:most]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("hi", (["hi"], True)),
        (np.str_("hi"), (["hi"], True)),
        (["a", "b"], (["a", "b"], False)),
        (("a", "b"), (["a", "b"], False)),
        ((word for word in "ab"), (["a", "b"], False)),
        (np.array(["a", "b"]), (["a", "b"], False)),
        (np.array(["a", "b"], dtype=object), (["a", "b"], False)),
        ({"a": 1, "b": 2}.keys(), (["a", "b"], False)),
        ([1, 2, 3], (IDS[:1], True)),
        (range(1, 4), (IDS[:1], True)),
        (np.array([1, 2, 3], dtype=np.int32), (IDS[:1], True)),
        ([np.int64(1), 2, 3], (IDS[:1], True)),
        (torch.tensor([1, 2, 3]), (IDS[:1], True)),
        (torch.tensor(IDS), (IDS, False)),
        (list(torch.tensor([1, 2, 3])), (IDS[:1], True)),
        ([torch.tensor(row) for row in IDS], (IDS, False)),
        ([np.array(row) for row in IDS], (IDS, False)),
        (BatchEncoding({"input_ids": IDS}), (IDS, False)),
        ({"input_ids": [0, 1, 2, 3], "attention_mask": [0, 1, 1, 1]}, (IDS[:1], True)),
        (
            {
                "input_ids": torch.tensor([[9, 1, 2, 3], [9, 4, 5, 6]]),
                "attention_mask": torch.tensor([[0, 1, 1, 1]] * 2),
            },
            (IDS, False),
        ),
        ([TURN], ([[TURN]], True)),
        ([[TURN], [TURN, TURN]], ([[TURN], [TURN, TURN]], False)),
        (
            [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}],
            ([[TURN]], True),
        ),
    ],
    ids=lambda value: told(value, 40),
)
def test_every_form_stands_for_a_plain_list(given: Any, expected: Any) -> None:
    assert prompt_list(given) == expected


@pytest.fixture(scope="module")
def tiny() -> Model:
    return load_model("tiny-llada", "cpu")


@pytest.fixture(scope="module")
def pipe(tiny: Model) -> Pipeline:
    return Pipeline.of(tiny).configured("vanilla", gen_length=4, block_length=4)


WRONG: list[tuple[Any, str]] = [
    (3, "prompts cannot be 3; give text, a list of token ids, a conversation"),
    (None, "prompts cannot be None; give text"),
    (b"hi", "prompts cannot be b'hi'; give text"),
    (1.5, "prompts cannot be 1.5; give text"),
    (TURN, "a prompt is no mapping, such as {'role': 'user', 'content': 'hi'}; give text"),
    ([3, "a"], "prompts cannot be 3; give text"),
    ([None], "prompts cannot be None; give text"),
    ([[{"role": "user", "content": [{"type": "image_url"}]}]], "only parts of text can be read"),
    ([], "there is no prompt; give at least one"),
]


@pytest.mark.parametrize(("given", "message"), WRONG, ids=lambda value: told(value, 30))
def test_what_is_no_prompt_gets_an_error_that_says_what_to_pass(pipe: Pipeline, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipe(given)


def test_a_flat_conversation_and_flat_ids_have_one_answer(pipe: Pipeline, tiny: Model) -> None:
    assert tiny.codec is not None
    assert pipe([TURN]).tokens == pipe("hi").tokens == pipe(np.array(tiny.codec.encode_chat([TURN]))).tokens  # type: ignore[call-overload,attr-defined]


@pytest.mark.parametrize("given", [["a", "b"], 3, None, [], [[1], [2]], iter(["a"])], ids=told)
def test_a_stream_of_anything_but_one_prompt_is_refused_at_the_call(pipe: Pipeline, given: Any) -> None:
    with pytest.raises(InputError):
        pipe.stream(given)
    assert pipe("hi").forwards  # and holds nothing


def test_each_object_is_told_in_one_short_line(pipe: Pipeline) -> None:
    with pipe.stream("hi") as stream:
        for told in map(repr, (pipe, pipe.engine, pipe.model, pipe.model.codec, stream)):
            assert len(told) < 200
            assert "\n" not in told
            assert "object at 0x" not in told


@pytest.mark.parametrize(
    "name",
    ["max_new_tokens", "max-tokens", "n_predict", "temperature", "top_p", "steps", "torch_dtype", "trust_remote_code"],
)
def test_names_of_other_tools_get_a_hint(name: str) -> None:
    assert known(name, ["gen_length"]).startswith("here it is ")


def test_a_pipeline_of_a_name_says_how_one_is_loaded() -> None:
    with pytest.raises(
        InputError, match=r"made of an Engine, not 'tiny-llada'; Pipeline.from_pretrained\(name\) loads"
    ):
        Pipeline("tiny-llada")  # type: ignore[arg-type]
