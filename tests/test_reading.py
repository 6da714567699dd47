"""What families of anybody's read checkpoints with: keys of a config, the mask token's id, weights by name, text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from helpers import CASES, offers, read_config
from lookalikes import llada_config
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from esdllm import (
    Catalogue,
    CheckpointError,
    LoadPlan,
    Model,
    ModelAdapter,
    ModelSpec,
    TokenizerError,
    UnavailableError,
    describe_model,
    load_model,
)
from esdllm.checkpoints.loading import describe_weights, random_model, shipped_checkpoints
from esdllm.checkpoints.reading import head_dim, json_object, mask_token_id, need, rope_theta, token
from esdllm.checkpoints.text import CHATML, Codec
from esdllm.checkpoints.weights import Checkpoint, compare
from esdllm_models.families.llada import LladaFamily

MASK = "<|mask|>"


# ------------------------------------------------------------------------------------------------------- a config


def test_a_whole_number_is_a_float_and_no_truth_value_is_a_number() -> None:
    assert type(need({"eps": 1}, "eps", float)) is float
    for kind in (int, float):
        with pytest.raises(CheckpointError, match=f"eps = True, where an? {kind.__name__} is needed"):
            need({"eps": True}, "eps", kind)
    assert need({"tied": True}, "tied", bool) is True


def test_a_special_token_that_is_absent_is_asked_for() -> None:
    with pytest.raises(
        CheckpointError, match="mask_token_id = None, where an int is needed; write the token's id there"
    ):
        token({}, "mask_token_id", 9)


@pytest.mark.parametrize(
    "config",
    [
        {"rope_theta": 1e6},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}},
        {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default"}},
        {"rope_theta": 1e6, "rope_parameters": None},
    ],
)
def test_rope_s_base_stands_in_its_parameters_or_beside_them(config: dict[str, Any]) -> None:
    assert rope_theta(config) == 1e6


def test_another_kind_of_rope_is_refused_wherever_its_base_stands() -> None:
    with pytest.raises(CheckpointError, match="rope_type = 'yarn' is not implemented; only 'default' is"):
        rope_theta({"rope_theta": 1e6, "rope_parameters": {"rope_type": "yarn"}})


def test_the_features_of_a_head_are_as_told_or_an_even_share() -> None:
    assert head_dim(64, 4, 2) == 16
    assert head_dim(30, 4, 2, told=16) == 16
    with pytest.raises(CheckpointError, match="30 features, 4 heads and 2 key-value heads do not divide evenly"):
        head_dim(30, 4, 2)
    with pytest.raises(CheckpointError, match="4 heads and 3 key-value heads do not divide evenly"):
        head_dim(64, 4, 3, told=16)
    for told in (15, 0, -2):
        with pytest.raises(CheckpointError, match=f"of {told} features; the features of a head must be even"):
            head_dim(64, 4, 2, told=told)


# ---------------------------------------------------------------------------------------------- the mask token's id


def written(folder: Path, **files: Any) -> Path:
    """A folder with JSON files, each by its name up to the dot."""
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


ADDED = [{"id": 5, "content": "<|im_end|>"}, {"id": 7, "content": MASK}]
DECODER = {"5": {"content": "<|im_end|>"}, "7": {"content": MASK}}


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"tokenizer_config": {"mask_token": MASK, "added_tokens_decoder": DECODER}}, 7),
        ({"tokenizer_config": {"mask_token": {"content": MASK}, "added_tokens_decoder": DECODER}}, 7),
        ({"tokenizer_config": {"mask_token": MASK}, "tokenizer": {"added_tokens": ADDED}}, 7),
        ({"tokenizer_config": {"mask_token": "[MASK]", "added_tokens_decoder": DECODER}}, None),
        ({"tokenizer_config": {"mask_token": None}, "tokenizer": {"added_tokens": ADDED}}, None),
        ({"tokenizer_config": {"added_tokens_decoder": DECODER}}, None),
        ({"tokenizer": {"added_tokens": ADDED}}, None),
        ({}, None),
    ],
)
def test_the_mask_token_s_id_is_what_the_tokenizer_s_files_say(tmp_path: Path, files: Any, found: int | None) -> None:
    assert mask_token_id(written(tmp_path, **files)) == found


@pytest.mark.parametrize("decoder", [[1], {"x": {"content": MASK}}, {"7": {}}, {"7": None}])
def test_added_tokens_that_cannot_be_read_are_named(tmp_path: Path, decoder: Any) -> None:
    folder = written(tmp_path, tokenizer_config={"mask_token": MASK, "added_tokens_decoder": decoder})
    with pytest.raises(CheckpointError, match=f"the added tokens of the tokenizer in {tmp_path} cannot be read"):
        mask_token_id(folder)


def test_a_config_without_the_mask_s_id_takes_the_tokenizer_s(catalogue: Catalogue, tmp_path: Path) -> None:
    config = {key: value for key, value in read_config("llada-0").items() if key != "mask_token_id"}
    about = {"mask_token": MASK, "added_tokens_decoder": DECODER}
    folder = written(tmp_path, config=config, tokenizer_config=about)
    assert describe_model(folder, catalogue).mask_id == 7
    written(tmp_path, config={**config, "mask_token_id": 9})
    assert describe_model(folder, catalogue).mask_id == 9
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    assert describe_model(folder, catalogue).mask_id == 9
    written(tmp_path, config={**config, "mask_token_id": None})
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is not JSON"):
        describe_model(folder, catalogue)


def test_a_file_that_is_no_object_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it\.json holds a list, where an object is needed"):
        json_object(written(tmp_path, it=[1]) / "it.json")


# --------------------------------------------------------------------------------------------------------- weights


def test_weights_are_read_into_place_in_the_place_s_dtype(tmp_path: Path) -> None:
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    save_file({"a": values, "head": values.clone()}, tmp_path / "model.safetensors")
    place = torch.zeros(7, 3, dtype=torch.bfloat16)
    Checkpoint(tmp_path, ["a"], ignored=["head", "absent"]).read("a", place[1:6])
    assert place[1:6].equal(values.bfloat16())
    assert not place[[0, 6]].any()
    with pytest.raises(CheckpointError, match=r"unexpected: head$"):
        Checkpoint(tmp_path, ["a"])


def test_names_that_differ_are_told_with_what_holds_them() -> None:
    compare("the Net", ["a", "b", "spare"], ["b", "a"], ignored=["spare"])
    with pytest.raises(CheckpointError, match=r"^the weights in the Net are not .*; missing: c; unexpected: a, b$"):
        compare("the Net", ["a", "b"], ["c"])


# ------------------------------------------------------------------------------------------------------------ text


def tokenizer(template: str | None = None) -> Any:
    words = {"hi": 0, "user": 1, "calm": 2, "<|im_start|>": 3, "assistant": 4}
    words |= {"<|im_end|>": 5, "<|endoftext|>": 6, MASK: 7}
    made = Tokenizer(models.WordLevel(words, unk_token="hi"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|endoftext|>", MASK])
    return PreTrainedTokenizerFast(tokenizer_object=made, mask_token=MASK, chat_template=template)


@pytest.fixture
def spec(catalogue: Catalogue) -> ModelSpec:
    return attrs.evolve(describe_model(CASES / "llada-0", catalogue), mask_id=7, eos_id=6)


def test_each_word_that_ends_an_answer_stops_once(spec: ModelSpec) -> None:
    codec = Codec(tokenizer(), spec, "<|im_end|>", CHATML, ends=["<|endoftext|>", "nowhere", "calm"])
    assert codec.stop_ids == (6, 5, 2)
    assert codec.has_chat
    assert not Codec(tokenizer(), spec, "nowhere", CHATML).has_chat


def test_a_template_reads_the_options_that_a_family_gives_it(spec: ModelSpec) -> None:
    template = "{{ messages[0].content }}{% if mood %} {{ mood }}{% endif %}"
    told, untold = (Codec(tokenizer(template), spec, "<|im_end|>", CHATML, **more) for more in ({"mood": "calm"}, {}))
    assert told.encode_chat([{"role": "user", "content": "hi"}]) == [0, 2]
    assert untold.encode_chat([{"role": "user", "content": "hi"}]) == [0]


def test_a_tokenizer_with_another_mask_token_is_refused(spec: ModelSpec) -> None:
    with pytest.raises(CheckpointError, match=r"mask token '<\|mask\|>' has the id 7, but the model's is 8; write"):
        Codec(tokenizer(), attrs.evolve(spec, mask_id=8), "<|im_end|>", CHATML)


# ------------------------------------------------------------------------------------------- what a family offers


@attrs.frozen
class Plain:
    """A family that offers nothing beside."""

    def spec(self, config: Any) -> ModelSpec:
        return LladaFamily().spec(config)

    def load(self, folder: Path, config: Any, plan: LoadPlan) -> ModelAdapter:
        return LladaFamily().load(folder, config, plan)

    def weight_bytes(self, config: Any, plan: LoadPlan) -> int:
        return 1

    def codec(self, source: Any, spec: ModelSpec) -> Any:
        raise TokenizerError("no words")


@attrs.frozen
class Misfit(Plain):
    """A family whose checkpoints have the tokenizer of others."""

    def codec(self, source: Any, spec: ModelSpec) -> Any:
        raise CheckpointError("the words of others")


def plain(folder: Path, family: type[Plain] = Plain) -> tuple[Path, Catalogue]:
    """A checkpoint of a family that offers nothing, and a catalogue that has it."""
    for path in (CASES / "llada-0").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    written(folder, config={**read_config("llada-0"), "model_type": "plain"})
    return folder, Catalogue.load({"plain": offers("esdllm_model_adapters", {"plain": family})})


def test_a_family_that_offers_nothing_loads_its_folders_as_they_are(tmp_path: Path) -> None:
    folder, catalogue = plain(tmp_path)
    model: Model = load_model(folder, "cpu", catalogue=catalogue)
    assert (model.codec, model.codec_error) == (None, "no words")
    assert set(shipped_checkpoints(catalogue)) == {"tiny-dream", "tiny-llada", "tiny-sdar"}


def test_what_a_family_does_not_offer_is_refused_before_it_is_asked(tmp_path: Path) -> None:
    folder, catalogue = plain(tmp_path)
    for ask in (load_model, describe_weights):
        with pytest.raises(UnavailableError, match="the quantisation 'int8' is not available for llada; none is"):
            ask(folder, quantize="int8", catalogue=catalogue)
    with pytest.raises(UnavailableError, match="llada cannot be spread over devices: cpu, meta"):
        load_model(folder, catalogue=catalogue, device_map=["cpu", "meta"])
    with pytest.raises(UnavailableError, match="llada makes no random weights; load a checkpoint"):
        random_model({**llada_config(4), "model_type": "plain"}, "cpu", catalogue=catalogue)


def test_a_tokenizer_that_is_not_the_model_s_keeps_it_from_loading(tmp_path: Path) -> None:
    folder, catalogue = plain(tmp_path, Misfit)
    with pytest.raises(CheckpointError, match="the words of others"):
        load_model(folder, "cpu", catalogue=catalogue)
