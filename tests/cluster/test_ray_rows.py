"""The laws of a decoder of rows, called as Ray Data calls it in its actors: each row's answer is that of its prompt alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("ray", reason='needs ray: pip install "esdllm[ray]"')

from esdllm import Engine, configure, load_model
from esdllm.errors import CheckpointError, ConfigError, InputError, UnavailableError
from esdllm.serving.ray import Decoder

pytestmark = pytest.mark.ray

CONFIG = configure("es-dllm-parallel", settings={"gen_length": 16, "block_length": 8})
ASKED = ["Who are you?", "What is 12 + 7?", "Sort these numbers from small to large: 31, 4, 15."]


@pytest.fixture(scope="module")
def engine(small: dict[str, Path]) -> Engine:
    return Engine.build(load_model(small["tiny-llada"], "cpu"), CONFIG)


@pytest.fixture(scope="module")
def decoder(small: dict[str, Path]) -> Iterator[Decoder]:
    found = Decoder(str(small["tiny-llada"]), CONFIG.to_dict(), slots=2, length=96, device="cpu")
    yield found
    found._session.close(10)


def alone(engine: Engine, prompt: Any, **how: Any) -> tuple[str, int]:
    found = engine.generate(prompt, **how)
    return (found.text or [""])[0], found.forwards


def answers(decoder: Decoder, prompts: Any) -> list[tuple[str, int]]:
    found = decoder({"prompt": prompts})
    assert set(found["error"]) == {""}
    return list(zip(found["text"], found["forwards"], strict=True))


@pytest.mark.parametrize("column", [list, np.array, lambda texts: np.array(texts, dtype=object), tuple])
def test_a_column_of_texts_is_decoded_whatever_holds_it(engine: Engine, decoder: Decoder, column: Any) -> None:
    assert answers(decoder, column(ASKED)) == [alone(engine, text) for text in ASKED]


def test_more_rows_than_slots_are_each_as_alone_in_any_order(engine: Engine, decoder: Decoder) -> None:
    prompts = ["Please. " * (i % 5) + ASKED[i % 3] for i in range(12)]
    expected = [alone(engine, prompt) for prompt in prompts]
    assert answers(decoder, prompts) == expected
    assert answers(decoder, prompts[::-1]) == expected[::-1]


def test_batches_at_the_same_time_are_not_mixed_up(engine: Engine, decoder: Decoder) -> None:
    expected = [alone(engine, text) for text in ASKED]
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda order: answers(decoder, [ASKED[i] for i in order]), [(0, 1), (2, 0, 1), (1,)]))
    assert found == [[expected[i] for i in order] for order in ((0, 1), (2, 0, 1), (1,))]


@pytest.mark.parametrize("as_column", [list, np.array])
def test_token_ids_and_conversations_are_prompts(engine: Engine, decoder: Decoder, as_column: Any) -> None:
    codec = engine.model.codec
    assert codec is not None
    ids = codec.encode(ASKED[0])
    assert answers(decoder, [as_column(ids)]) == [alone(engine, [ids])]
    turns = [{"role": "user", "content": ASKED[1]}]
    assert answers(decoder, [np.array(turns, dtype=object)]) == [alone(engine, [turns])]


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ("word " * 200, "shorten the prompt"),
        ([10**9], "1000000000"),
        ([], "prompt"),
        (None, "None"),
        (3.5, "3.5"),
        ({"role": "user"}, "role"),
        ([{"role": "user"}], "content"),
        ("", "prompt"),
    ],
)
def test_a_row_that_cannot_be_decoded_says_why_and_spoils_no_other(
    engine: Engine, decoder: Decoder, prompt: Any, told: str
) -> None:
    found = decoder({"id": [7, 8, 9], "prompt": [ASKED[0], prompt, ASKED[1]]})
    assert found["id"] == [7, 8, 9]
    assert told in found["error"][1]
    assert (found["text"][1], found["tokens"][1]) == ("", 0)
    assert [found["text"][i] for i in (0, 2)] == [alone(engine, text)[0] for text in ASKED[:2]]
    assert [found["error"][i] for i in (0, 2)] == ["", ""]


def test_a_batch_without_rows_stays_one(decoder: Decoder) -> None:
    found = decoder({"prompt": []})
    assert {name: list(values) for name, values in found.items()} == {name: [] for name in found}
    assert {"text", "tokens", "forwards", "seconds", "error"} < set(found)


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        ({"model": "nowhere"}, CheckpointError, "nowhere"),
        ({"config": {**CONFIG.to_dict(), "gen_lenght": 8}}, ConfigError, "gen_length"),
        ({"slots": 10**6}, UnavailableError, "would fit"),
        ({"length": 16}, Exception, "no prompt has room"),
        ({"device": "cuda:77"}, UnavailableError, "cuda"),
    ],
)
def test_what_cannot_be_decoded_so_is_said_at_once(
    small: dict[str, Path], change: dict[str, Any], error: type[Exception], told: str
) -> None:
    given = {"model": str(small["tiny-llada"]), "config": CONFIG.to_dict(), "device": "cpu", "slots": 2, "length": 96}
    with pytest.raises(error, match=told):
        Decoder(**{**given, **change})


def test_rows_without_prompts_say_what_they_have(decoder: Decoder) -> None:
    with pytest.raises(InputError, match=r"no column 'prompt'; they have \['text', 'id'\]"):
        decoder({"text": ["Who are you?"], "id": [1]})


def test_a_session_that_ended_is_the_machine_s_fault_and_no_row_s(small: dict[str, Path]) -> None:
    found = Decoder(str(small["tiny-llada"]), CONFIG.to_dict(), slots=1, length=64, device="cpu")
    found._session.close(10)
    with pytest.raises(UnavailableError, match="closed"):
        found({"prompt": [ASKED[0]]})
