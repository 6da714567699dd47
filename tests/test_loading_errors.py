"""What a damaged or foreign checkpoint gets: the key, weight or file by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from helpers import CASES, offers, read_config, write_checkpoint
from safetensors.torch import load_file
from torch import Tensor

from esdllm import Catalogue, CheckpointError, describe_model, load_model


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_file(CASES / "llada-0" / "model.safetensors")


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return read_config("llada-0")


NORM = "model.transformer.ln_f.weight"
QUERY = "model.transformer.blocks.3.q_proj.weight"
SECOND = "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def refused(catalogue: Catalogue, folder: Path, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(folder, "cpu", catalogue=catalogue)


def test_missing_and_unexpected_weights_are_named(
    catalogue: Catalogue, tmp_path: Path, config: Any, weights: Any
) -> None:
    fewer = {name: weight for name, weight in weights.items() if name != NORM}
    refused(catalogue, write_checkpoint(tmp_path / "fewer", config, fewer), f"missing: {NORM}$")
    more = {**weights, "lm_head.bias": torch.zeros(3)}
    refused(catalogue, write_checkpoint(tmp_path / "more", config, more), "unexpected: lm_head.bias$")
    both = {**fewer, "lm_head.bias": torch.zeros(3)}
    refused(catalogue, write_checkpoint(tmp_path / "both", config, both), f"missing: {NORM}; unexpected: lm_head.bias")
    deeper = write_checkpoint(tmp_path / "deeper", {**config, "n_layers": 9}, weights)
    refused(catalogue, deeper, r"missing: model.transformer.blocks.8.attn_norm.weight, .* and 1 more$")


def test_a_wrong_shape_is_named_with_both_shapes(
    catalogue: Catalogue, tmp_path: Path, config: Any, weights: Any
) -> None:
    folder = write_checkpoint(tmp_path, config, {**weights, QUERY: torch.zeros(64, 63)})
    refused(catalogue, folder, rf"'{QUERY}' has the shape \(64, 63\), but config.json says \(64, 64\)")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(
    catalogue: Catalogue, tmp_path: Path, config: Any, weights: Any, value: float
) -> None:
    bad = weights[QUERY].clone()
    bad[5, 7] = value
    folder = write_checkpoint(tmp_path, config, {**weights, QUERY: bad})
    refused(catalogue, folder, f"'{QUERY}' holds values that are not finite")


def test_a_weight_that_would_broadcast_is_refused(
    catalogue: Catalogue, tmp_path: Path, config: Any, weights: Any
) -> None:
    folder = write_checkpoint(tmp_path, config, {**weights, NORM: torch.ones(1)})
    refused(catalogue, folder, rf"'{NORM}' has the shape \(1,\)")


def test_a_shard_that_is_missing_or_damaged_is_named(
    catalogue: Catalogue, tmp_path: Path, config: Any, weights: Any
) -> None:
    folder = write_checkpoint(tmp_path, config, weights, shards=2)
    whole = (folder / SECOND).read_bytes()
    (folder / SECOND).write_bytes(whole[:-1000])
    refused(catalogue, folder, f"{SECOND} is truncated or no safetensors file: .*; download it again")
    (folder / SECOND).write_bytes(b"<html>not found</html>")
    refused(catalogue, folder, f"{SECOND} is truncated or no safetensors file")
    (folder / SECOND).write_bytes(b"")
    refused(catalogue, folder, f"{SECOND} is truncated or no safetensors file")
    (folder / SECOND).unlink()
    refused(catalogue, folder, f"the shard {SECOND} is missing from {folder}")
    (folder / SECOND).write_bytes(whole)
    assert load_model(folder, "cpu", catalogue=catalogue).spec.n_layers == 8


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": 3}', "3"])
def test_a_broken_index_is_named(catalogue: Catalogue, tmp_path: Path, config: Any, weights: Any, index: str) -> None:
    folder = write_checkpoint(tmp_path, config, weights, shards=2)
    (folder / INDEX).write_text(index, encoding="utf-8")
    refused(catalogue, folder, f"{INDEX} is no weight index")


@pytest.mark.parametrize("inside", [True, False])
def test_an_index_reads_nothing_outside_its_folder(
    catalogue: Catalogue, tmp_path: Path, config: Any, weights: Any, inside: bool
) -> None:
    folder = write_checkpoint(tmp_path / "it", config, weights)
    write_checkpoint(tmp_path / "other", config, weights)
    name = "../other/model.safetensors" if inside else str(tmp_path / "other" / "model.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(weights, name)}), encoding="utf-8")
    refused(catalogue, folder, f"{INDEX} names '{name}', which is not in its folder")


def test_a_folder_without_weights_or_config_is_no_checkpoint(catalogue: Catalogue, tmp_path: Path, config: Any) -> None:
    refused(catalogue, tmp_path, f"{tmp_path} is no checkpoint: it has no config.json")
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    refused(catalogue, tmp_path, f"{tmp_path} holds no weights: neither model.safetensors nor {INDEX}; other formats")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON: .*line 1"), ("", "is not JSON"), ("[1]", "holds a list, where an object is needed")],
)
def test_a_broken_config_is_named(catalogue: Catalogue, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    refused(catalogue, tmp_path, f"{tmp_path}/config.json {message}")


@pytest.mark.parametrize("named", [{"model_type": "lada"}, {"model_type": "gpt2"}])
def test_an_unknown_model_type_lists_the_known_and_how_to_add_one(
    catalogue: Catalogue, tmp_path: Path, named: dict[str, str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(named), encoding="utf-8")
    nearest = "did you mean 'llada'.* " if named["model_type"] == "lada" else ""
    message = rf"model_type '.*' is not implemented; {nearest}known: Dream, .*llada.*\. A plugin adds one"
    refused(catalogue, tmp_path, f"{message} with the hook esdllm_model_adapters$")


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llada-0", {"alibi": True}, "alibi = True is not implemented; only False is"),
    ("llada-0", {"include_bias": True}, "include_bias = True is not implemented"),
    ("llada-0", {"include_qkv_bias": True}, "include_qkv_bias = True is not implemented"),
    ("llada-0", {"block_group_size": 2}, "block_group_size = 2 is not implemented; only 1 is"),
    ("llada-0", {"block_type": "sequential"}, "block_type = 'sequential' is not implemented; only 'llama' is"),
    ("llada-0", {"layer_norm_type": "default"}, "layer_norm_type = 'default' is not implemented; only 'rms' is"),
    ("llada-0", {"activation_type": "gelu"}, "activation_type = 'gelu' is not implemented; only 'silu' is"),
    ("llada-0", {"scale_logits": True}, "scale_logits = True is not implemented"),
    ("llada-0", {"rope": False}, "rope = False is not implemented; only True is"),
    ("llada-0", {"rope_full_precision": False}, "rope_full_precision = False is not implemented; only True is"),
    ("llada-0", {"d_model": None}, "d_model = None, where an int is needed"),
    ("llada-0", {"n_layers": "8"}, "n_layers = '8', where an int is needed"),
    ("llada-0", {"n_layers": True}, "n_layers = True, where an int is needed"),
    ("llada-0", {"n_kv_heads": "4"}, "n_kv_heads = '4', where an int is needed"),
    ("llada-0", {"embedding_size": "256"}, "embedding_size = '256', where an int is needed"),
    ("llada-0", {"n_heads": 5}, "64 features, 5 heads and 4 key-value heads do not divide evenly"),
    ("llada-0", {"n_heads": 0}, "n_heads = 0, where a whole number from 1 to 16777216 is needed"),
    ("llada-0", {"n_kv_heads": 3}, "64 features, 4 heads and 3 key-value heads do not divide evenly"),
    ("llada-0", {"mask_token_id": 256}, "mask_token_id = 256 is outside the vocabulary of 256"),
    ("llada-0", {"eos_token_id": -1}, "eos_token_id = -1 is outside the vocabulary of 256"),
    (
        "dream-0",
        {"rope_scaling": {"type": "dynamic"}},
        "rope_scaling: type = 'dynamic' is not implemented; only 'default' or 'linear'",
    ),
    ("dream-0", {"use_sliding_window": True}, "use_sliding_window = True is not implemented"),
    ("dream-0", {"hidden_act": "mish"}, "hidden_act = 'mish' is not implemented; only 'silu' or 'gelu'"),
    ("dream-0", {"use_mrope": True}, "use_mrope = True is not implemented"),
    ("dream-0", {"mask_token_id": None}, "mask_token_id = None, where an int is needed"),
]


@pytest.mark.parametrize(("name", "change", "message"), REFUSED, ids=str)
def test_what_is_not_implemented_is_refused_by_its_key(
    catalogue: Catalogue, tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**read_config(name), **change}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"config.json: {message}"):
        describe_model(tmp_path, catalogue)


@pytest.mark.parametrize("key", ["rope_theta", "rms_norm_eps"])
def test_a_constant_of_the_layers_must_be_a_number(
    catalogue: Catalogue, tmp_path: Path, config: Any, weights: Any, key: str
) -> None:
    refused(catalogue, write_checkpoint(tmp_path / "no", {**config, key: "x"}, weights), f"{key} = 'x', where a float")
    whole = write_checkpoint(tmp_path / "yes", {**config, key: 1}, weights)
    assert load_model(whole, "cpu", catalogue=catalogue).spec.n_layers == 8


@attrs.frozen
class Family:
    """A family that ships one checkpoint."""

    @property
    def checkpoints(self) -> dict[str, Path]:
        return {"mine": CASES / "llada-0"}


def test_a_plugin_may_ship_checkpoints_by_name(tmp_path: Path) -> None:
    catalogue = Catalogue.load({"mine": offers("esdllm_model_adapters", {"mine": Family})})
    assert load_model("mine", "cpu", catalogue=catalogue).spec.family == "llada"
    with pytest.raises(CheckpointError, match="known: mine, tiny-dream, tiny-llada, tiny-sdar"):
        load_model(tmp_path / "none", "cpu", catalogue=catalogue)
