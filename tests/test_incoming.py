"""What people pass as prompts is decoded as the plain lists that it stands for, or an error says what to pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BatchEncoding

from esdllm import ConfigError, InputError, Model, Pipeline, load_model
from esdllm.errors import known
from esdllm.use.incoming import one, prompt_list, template_list

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


class Column:
    """What pandas' Series, Index and arrays are here: something that is no sequence, and gives a list."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def tolist(self) -> list[Any]:
        return list(self.values)


class Table:
    """What pandas' DataFrame is here: its columns' names are what it is iterated over."""

    def __init__(self, *columns: Any) -> None:
        self.columns = columns

    def __iter__(self) -> Iterator[Any]:
        return iter(self.columns)


class NotAvailable:
    """What pandas' NA is here: compared with anything it is itself, and neither true nor false."""

    def __eq__(self, other: object) -> Any:
        return self

    __ne__ = __eq__
    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    def __repr__(self) -> str:
        return "<NA>"


NA, NAN = NotAvailable(), float("nan")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (Column("a", "b"), (["a", "b"], False)),
        (Column(1, 2, 3), (IDS[:1], True)),
        (Column(*IDS), (IDS, False)),
        (Column(*map(np.array, IDS)), (IDS, False)),
        (Column([TURN], [TURN]), ([[TURN], [TURN]], False)),
        (Column(TURN, TURN), ([[TURN, TURN]], True)),
        (Column(), ([], False)),
        (np.array("a"), (["a"], True)),
    ],
    ids=lambda value: told(value, 40),
)
def test_a_column_stands_for_the_list_of_its_values(given: Any, expected: Any) -> None:
    assert prompt_list(given) == expected


@pytest.mark.parametrize("missing", [None, NAN, NA, np.float32("nan"), np.datetime64("NaT")], ids=told)
@pytest.mark.parametrize("there", ["a", 1, 1.0, [1, 2]], ids=told)
@pytest.mark.parametrize("form", [list, lambda values: Column(*values)], ids=["list", "column"])
def test_a_value_that_is_missing_is_named_with_its_number(missing: Any, there: Any, form: Any) -> None:
    for call in (prompt_list, template_list):
        with pytest.raises(
            InputError, match=r"cannot be .*; give text, .*missing, such as number 1 here .*dropna"
        ) as it:
            call(form([there, missing]))
        assert f"cannot be {missing!r};" in str(it.value)


@pytest.mark.parametrize(
    ("table", "hint"),
    [
        (Table("prompt", "n"), r", such as table\['prompt'\]$"),
        (Table("prompt"), r", such as table\['prompt'\]$"),
        (Table(("x", "y")), r", such as table\[\('x', 'y'\)\]$"),
        (Table(0), r", such as table\[0\]$"),
        (Table(), "$"),
    ],
    ids=["two", "one", "pair", "number", "none"],
)
def test_a_table_is_refused_with_a_column_to_pass(table: Table, hint: str) -> None:
    for call in (prompt_list, template_list, one):
        with pytest.raises(InputError, match=f"a table is no list of prompts; give one of its columns{hint}"):
            call(table)


def test_pandas_own_columns_are_what_the_stand_ins_are() -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"prompt": ["a", "b"], "n": [1, 2]})
    texts = (table["prompt"], table["prompt"].astype("category"), pandas.Index(["a", "b"]), table["prompt"].array)
    assert all(prompt_list(given) == template_list(given) == (["a", "b"], False) for given in texts)
    assert prompt_list(table["n"]) == prompt_list(table["n"].astype("Int64")) == ([[1, 2]], True)
    for given in (pandas.Series(["a", pandas.NA], dtype="string"), pandas.Series([1, None]), pandas.array([1, None])):
        with pytest.raises(InputError, match="missing, such as number 1 here"):
            prompt_list(given)
    with pytest.raises(InputError, match=r"such as table\['prompt'\]"):
        prompt_list(table)


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


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    [tuple, iter, np.array, torch.tensor, lambda values: list(map(np.int64, values)), lambda values: Column(*values)],
    ids=["tuple", "iterator", "array", "tensor", "numbers", "column"],
)
def test_seeds_come_in_every_form(tiny: Model, form: Any) -> None:
    hot = Pipeline.of(tiny).configured("vanilla", gen_length=4, block_length=4, sampler={"temperature": 2.0})
    plain = [answer.tokens for answer in hot(["hi", "hi"], seed=[3, 4])]
    assert plain[0] != plain[1]
    assert [answer.tokens for answer in hot(["hi", "hi"], seed=form([3, 4]))] == plain
    assert hot.engine.generate(["hi", "hi"], seed=form([3, 4])).answers == list(map(list, plain))
    assert hot("hi", seed=np.int64(3)).tokens == plain[0]


@pytest.mark.parametrize("batch", [0, 1.5, "2", None], ids=told)
def test_a_batch_that_is_no_number_of_prompts_is_refused(pipe: Pipeline, batch: Any) -> None:
    with pytest.raises(InputError, match=f"batch = {batch!r}; give at least 1, a whole number"):
        pipe(["hi"], batch=batch)


def test_templates_come_in_every_form(pipe: Pipeline) -> None:
    whole = [one.text for one in pipe.infill(["a [MASK]", "b [MASK:2]"])]
    for form in (np.array, iter, lambda values: Column(*values)):
        assert [one.text for one in pipe.infill(form(["a [MASK]", "b [MASK:2]"]))] == whole
    with pytest.raises(InputError, match="a prompt is no mapping"):
        pipe.infill({"a [MASK]": 1})  # type: ignore[call-overload]


def test_numbers_of_numpy_are_numbers_in_settings(pipe: Pipeline) -> None:
    own = pipe.configured(gen_length=np.int64(8), early_stop=np.bool_(True), sampler={"temperature": np.float32(0.5)})
    assert own.config == pipe.configured(gen_length=8, early_stop=True, sampler={"temperature": 0.5}).config
    with pytest.raises(ConfigError, match=r"'gen_length': 0\.5 is not an int"):
        pipe.configured(gen_length=np.float64(0.5))


def test_an_error_is_one_line_whatever_it_names(pipe: Pipeline) -> None:
    class Tall:
        def __repr__(self) -> str:
            return "0  a\n1  b"

    for call in (pipe, pipe.stream, pipe.infill, pipe.engine.generate, lambda given: pipe("hi", seed=given), Pipeline):
        with pytest.raises(InputError) as caught:
            call(Tall())
        assert "0  a 1  b" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_pipeline_of_a_name_says_how_one_is_loaded() -> None:
    with pytest.raises(
        InputError, match=r"made of an Engine, not 'tiny-llada'; Pipeline.from_pretrained\(name\) loads"
    ):
        Pipeline("tiny-llada")  # type: ignore[arg-type]
