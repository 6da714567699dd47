"""A config.json whose numbers no model can have is refused, by the file, the key and the value, before anything is allocated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import read_config

from esdllm import Catalogue, CheckpointError, describe_model, load_model
from esdllm.checkpoints.loading import describe_weights, random_model

SIZES = {
    "llada-0": [
        "n_layers",
        "d_model",
        "n_heads",
        "n_kv_heads",
        "embedding_size",
        "max_sequence_length",
        "mlp_hidden_size",
    ],
    "dream-0": [
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "max_position_embeddings",
        "intermediate_size",
    ],
}
NO_SIZES = [0, -1, -(2**70), 2**40, 10**400, 1.5, "12", True, [], None]
NO_FACTORS = [0, -1, float("nan"), float("inf"), float("-inf"), 10**400, "1e-5", True, [1.0], None]


def written(folder: Path, **changes: Any) -> Path:
    """A checkpoint's folder with a config.json alone; Python's JSON writes NaN and Infinity as it reads them."""
    name = "dream-0" if changes.keys() & set(SIZES["dream-0"]) or changes.pop("dream", False) else "llada-0"
    (folder / "config.json").write_text(json.dumps({**read_config(name), **changes}), encoding="utf-8")
    return folder


@pytest.mark.parametrize("value", NO_SIZES, ids=lambda value: repr(type(value)) + str(value)[:6])
@pytest.mark.parametrize("key", [key for keys in SIZES.values() for key in keys])
def test_a_size_that_no_model_can_have_is_refused(catalogue: Catalogue, tmp_path: Path, key: str, value: Any) -> None:
    if value is None and key in ("n_kv_heads", "embedding_size"):
        return  # which say then that there is no such size of its own
    with pytest.raises(CheckpointError, match=rf"^config\.json: {key} = ") as refused:
        load_model(written(tmp_path, **{key: value}), "cpu", catalogue=catalogue)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("value", NO_FACTORS, ids=lambda value: repr(type(value)) + str(value)[:6])
@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps"])
@pytest.mark.parametrize("dream", [False, True], ids=["llada", "dream"])
def test_a_factor_that_makes_no_numbers_is_refused_wherever_the_config_is_read(
    catalogue: Catalogue, tmp_path: Path, dream: bool, key: str, value: Any
) -> None:
    folder = written(tmp_path, dream=dream, **{key: value})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for read in (load_model, describe_model, describe_weights):
        with pytest.raises(CheckpointError, match=rf"^config\.json: {key} = "):
            read(folder, catalogue=catalogue)
    with pytest.raises(CheckpointError, match=rf"^config\.json: {key} = "):
        random_model(config, catalogue=catalogue)


def test_the_base_of_rope_is_held_to_the_same_where_transformers_5_keeps_it(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    folder = written(tmp_path, dream=True, rope_parameters={"rope_theta": 0.0})
    with pytest.raises(
        CheckpointError, match=r"^config\.json: rope_theta = 0\.0, where a finite number above 0 is needed"
    ):
        describe_model(folder, catalogue)


def test_the_largest_of_everything_is_told(catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"n_layers = 10001, where a whole number from 1 to 10000 is needed"):
        describe_model(written(tmp_path, n_layers=10001), catalogue)
    assert describe_model(written(tmp_path, n_layers=10000), catalogue).n_layers == 10000


# ------------------------------------------------------------------------------------------------- the files themselves

BROKEN: list[tuple[bytes, str]] = [
    (b"", "is not JSON: "),
    (b"{" * 3, "is not JSON: "),
    (b'{"a":' * 100_000, "is not JSON: its brackets are nested too deeply"),
    (b"[" * 100_000, "is not JSON: its brackets are nested too deeply"),
    (b'{"a": ' + b"9" * 10_000 + b"}", "is not JSON: it has a number of more than 4300 digits"),
    (b'{"a": "\xff"}', "is not JSON: it is not valid UTF-8 at byte 7"),
    ('{"a": 1}'.encode("utf-16"), "is not JSON: it is not valid UTF-8 at byte 0"),
    (b"\x00" * 50_000, "is not JSON: "),
    (b"[1]", "holds a list, where an object is needed"),
    (b'"' + b"x" * 50_000 + b'"', "holds a str, where an object is needed"),
]


@pytest.mark.parametrize(("content", "message"), BROKEN, ids=lambda value: repr(value)[:24])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "model.safetensors.index.json"])
def test_a_broken_file_of_a_checkpoint_is_named_in_a_short_line(
    catalogue: Catalogue, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    changes = {"mask_token_id": None} if name == "tokenizer_config.json" else {}
    (written(tmp_path, **changes) / name).write_bytes(content)
    with pytest.raises(CheckpointError) as refused:
        load_model(tmp_path, "cpu", catalogue=catalogue)
    told = "is no weight index: " if name.endswith("index.json") else message
    assert f"{tmp_path / name} {told}" in str(refused.value)
    assert len(str(refused.value)) < 400


INDEXES: list[Any] = [{}, {"weight_map": None}, {"weight_map": ["model.safetensors"]}, {"weight_map": "x" * 20_000}]


@pytest.mark.parametrize("index", INDEXES, ids=lambda value: repr(value)[:30])
def test_an_index_without_a_map_says_what_one_holds(catalogue: Catalogue, tmp_path: Path, index: Any) -> None:
    (written(tmp_path) / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"index\.json is no weight index: it must hold \"weight_map\""
    ) as refused:
        load_model(tmp_path, "cpu", catalogue=catalogue)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("shard", ["", ".", "..", "a/b", "a\0b", "x" * 20_000, 5, None, [], "\ud800", "no.safetensors"])
def test_a_shard_that_is_no_file_of_the_folder_is_named_in_a_short_line(
    catalogue: Catalogue, tmp_path: Path, shard: Any
) -> None:
    index = {"weight_map": {"model.embed_tokens.weight": shard}}
    (written(tmp_path) / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError) as refused:
        load_model(tmp_path, "cpu", catalogue=catalogue)
    assert len(str(refused.value)) < 500


def test_a_byte_order_mark_is_no_fault_of_a_checkpoint(catalogue: Catalogue, tmp_path: Path) -> None:
    path = written(tmp_path) / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert describe_model(tmp_path, catalogue).family == "llada"
