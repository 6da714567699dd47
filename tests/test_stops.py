"""What ends an answer is not in it: every token that a config, a tokenizer or a family says ends one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CASES, read_config, write_checkpoint
from safetensors.torch import load_file

from esdllm import Catalogue, CheckpointError, Engine, ModelSpec, Pipeline, describe_model, load_model
from esdllm.checkpoints.loading import shipped_checkpoints
from esdllm.checkpoints.reading import ends_of_text, stop_ids, token


@pytest.fixture(params=["tiny-llada", "tiny-dream"])
def name(request: pytest.FixtureRequest) -> str:
    text: str = request.param
    return text


@pytest.fixture
def folder(catalogue: Catalogue, name: str, tmp_path: Path) -> Path:
    """A copy of a shipped checkpoint."""
    return Path(shutil.copytree(shipped_checkpoints(catalogue)[name], tmp_path / name))


def edit(folder: Path, file: str = "config.json", **changes: Any) -> None:
    path = folder / file
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**known, **changes}), encoding="utf-8")


def stops(folder: Path, catalogue: Catalogue) -> set[int]:
    return set(load_model(folder, "meta", catalogue=catalogue).stop_ids)


@pytest.mark.parametrize("name", ["tiny-llada", "tiny-dream", "tiny-sdar"])
def test_the_shipped_checkpoints_stop_at_their_end_of_text_and_of_turn(folder: Path, catalogue: Catalogue) -> None:
    model = load_model(folder, "meta", catalogue=catalogue)
    assert model.codec
    turn = "<|eot_id|>" if model.spec.family == "llada" else "<|im_end|>"
    assert model.stop_ids == model.codec.stop_ids == (model.spec.eos_id, *model.codec.encode(turn))


def test_an_answer_ends_at_all_that_the_configs_list(folder: Path, catalogue: Catalogue) -> None:
    before = stops(folder, catalogue)
    end = describe_model(folder, catalogue).eos_id
    edit(folder, eos_token_id=[end, 11])
    assert stops(folder, catalogue) == before | {11}
    edit(folder, "generation_config.json", eos_token_id=[12, end, 13])
    assert stops(folder, catalogue) == before | {11, 12, 13}
    edit(folder, "generation_config.json", eos_token_id=14)
    assert stops(folder, catalogue) == before | {11, 14}
    assert describe_model(folder, catalogue).eos_id == end
    edit(folder, eos_token_id=None)
    assert describe_model(folder, catalogue).eos_id == 14
    (folder / "generation_config.json").unlink()
    with pytest.raises(CheckpointError, match="eos_token_id = None, where an int is needed"):
        describe_model(folder, catalogue)


@pytest.mark.parametrize("key", ["eos_token", "pad_token"])
def test_an_answer_ends_at_the_tokenizers_end_and_padding(folder: Path, catalogue: Catalogue, key: str) -> None:
    before, start = stops(folder, catalogue), "<|start_header_id|>" if "llada" in folder.name else "<|im_start|>"
    edit(folder, "tokenizer_config.json", **{key: start})
    model = load_model(folder, "meta", catalogue=catalogue)
    assert model.codec
    assert set(model.stop_ids) == before | set(model.codec.encode(start))


def test_a_fine_tunes_end_may_be_its_end_of_turn(folder: Path, catalogue: Catalogue) -> None:
    before = stops(folder, catalogue)
    text, turn = load_model(folder, "meta", catalogue=catalogue).stop_ids
    edit(folder, eos_token_id=turn)
    model = load_model(folder, "meta", catalogue=catalogue)
    assert (model.spec.eos_id, set(model.stop_ids)) == (turn, before)
    assert text in model.stop_ids


def test_a_padding_that_is_the_mask_ends_nothing(folder: Path, catalogue: Catalogue) -> None:
    mask = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["mask_token"]
    edit(folder, "tokenizer_config.json", pad_token=mask)
    model = load_model(folder, "meta", catalogue=catalogue)
    assert model.spec.mask_id not in model.stop_ids


@pytest.fixture
def saying(folder: Path, catalogue: Catalogue) -> Any:
    """Makes an engine over the folder in which every position is decided as it is told to."""

    def made(answer: list[int]) -> Engine:
        model = load_model(folder, "cpu", "float32", catalogue=catalogue)
        settings = {"gen_length": 8, "block_length": 8, "early_stop": False}
        engine = Engine.build(model, catalogue.configure("vanilla", settings=settings), catalogue)
        function: Any = engine.step_function
        real, said = function._step, torch.tensor([answer + [answer[-1]] * (8 - len(answer))])

        def forced(parts: Any, plan: Any, canvas: Any, inputs: Any) -> None:
            real(parts, plan, canvas, inputs)
            tail = canvas.tokens[:, -8:]
            tail.copy_(torch.where(tail == model.spec.mask_id, tail, said))

        function._step = forced
        return engine

    return made


@pytest.mark.slow
@pytest.mark.parametrize("how", ["config", "generation", "tokenizer"])
def test_what_ends_an_answer_is_not_in_it(folder: Path, saying: Any, how: str) -> None:
    word = 20
    if how == "config":
        edit(folder, eos_token_id=[describe_model(folder).eos_id, word])
    elif how == "generation":
        edit(folder, "generation_config.json", eos_token_id=[word])
    else:  # a padding of its own, as <|dlm_pad|> is DiffuCoder's
        spelled = load_model(folder, "meta").codec
        assert spelled
        edit(folder, "tokenizer_config.json", pad_token=spelled.decode([word]))
    engine = saying([30, 31, word, 32])
    found = engine.generate([[40, 41]])
    assert found.answers == [[30, 31]]
    assert found.text == [engine.model.codec.decode([30, 31])]
    engine = saying([30, 31, word, 32])
    with Pipeline(engine).stream([40, 41]) as stream:
        last = list(stream)[-1]
    assert (last.settled, stream.answer.tokens) == ((30, 31), (30, 31))


# -------------------------------------------------------------------------------------------------- what is wrong


def test_an_end_that_is_the_mask_is_refused_by_name(folder: Path, catalogue: Catalogue) -> None:
    spec = describe_model(folder, catalogue)
    message = (
        rf"config.json: the token {spec.mask_id} is the mask \(mask_token_id\) and ends the text too \(eos_token_id\)"
    )
    for wrong in (spec.mask_id, [spec.mask_id], [spec.eos_id, spec.mask_id]):
        edit(folder, eos_token_id=wrong)
        for ask in (lambda: describe_model(folder, catalogue), lambda: load_model(folder, "cpu", catalogue=catalogue)):
            with pytest.raises(CheckpointError, match=message):
                ask()
    edit(folder, eos_token_id=spec.eos_id)
    edit(folder, "generation_config.json", eos_token_id=spec.mask_id)
    with pytest.raises(CheckpointError, match=message):
        load_model(folder, "cpu", catalogue=catalogue)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("5", "eos_token_id = '5', where an int is needed"),
        ([5, None], "eos_token_id = None, where an int is needed"),
        ([5, True], "eos_token_id = True, where an int is needed"),
        ([5, 2.0], "eos_token_id = 2.0, where an int is needed"),
        ([[5]], r"eos_token_id = \[5\], where an int is needed"),
        ([], r"eos_token_id = None, where an int is needed"),
        ({"a": 5}, "eos_token_id = {'a': 5}, where an int is needed"),
        ([5, -1], "eos_token_id = -1 is outside the vocabulary"),
        ([5, 10**30], f"eos_token_id = {10**30} is outside the vocabulary"),
        (10**6, "eos_token_id = 1000000 is outside the vocabulary"),
    ],
)
def test_ends_that_are_no_tokens_are_named(folder: Path, catalogue: Catalogue, wrong: Any, message: str) -> None:
    edit(folder, eos_token_id=wrong)
    with pytest.raises(CheckpointError, match=f"config.json: {message}"):
        describe_model(folder, catalogue)


def test_only_ends_may_be_several() -> None:
    with pytest.raises(CheckpointError, match=r"mask_token_id = \[5, 6\], where an int is needed"):
        token({"mask_token_id": [5, 6]}, "mask_token_id", 9)
    assert token({"eos_token_id": [5, 6]}, "eos_token_id", 9) == 5
    assert stop_ids({"eos_token_id": [5, 6, 5]}, 9) == (5, 6)
    assert stop_ids({"eos_token_id": 5}, 9) == (5,)
    assert stop_ids({}, 9) == ()


def test_a_model_without_a_tokenizer_stops_at_what_its_config_lists(catalogue: Catalogue, tmp_path: Path) -> None:
    config = {**read_config("llada-0"), "eos_token_id": [253, 7]}
    folder = write_checkpoint(tmp_path, config, load_file(CASES / "llada-0" / "model.safetensors"))
    assert load_model(folder, "cpu", catalogue=catalogue).stop_ids == (253, 7)


def test_a_spec_of_any_family_has_an_end_that_is_no_mask() -> None:
    with pytest.raises(CheckpointError, match="the token 5 is the mask"):
        ModelSpec("any", 1, 8, 1, 1, 8, 16, 32, mask_id=5, eos_id=4, stop_ids=(3, 5))


def test_ends_of_several_configs_stand_in_their_order() -> None:
    assert ends_of_text(5, None) == 5
    assert ends_of_text([5, 6], (7,)) == [5, 6, 7]
    assert ends_of_text(None, 7) == 7
    assert ends_of_text(None, None) is None
