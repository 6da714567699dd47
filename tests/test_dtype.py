"""The dtype that a model loads in: as asked for, else as config.json says, else as most of its weights are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CASES, read_config, write_checkpoint
from safetensors.torch import load_file
from torch import Tensor

from esdllm import Catalogue, CheckpointError, load_model
from esdllm.checkpoints.loading import describe_weights
from esdllm.cli import main
from esdllm.testing import random_model

KEYS = ("torch_dtype", "dtype")
NAMES = ["float64", "float8_e4m3fn", "int8", "bf16", "BFLOAT16", "torch.", "torch.int8", "", "8" * 10_000]
OTHERS = [16, 0, True, 1.5, [], ["bfloat16"], {}, {"": "bfloat16"}]


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_file(CASES / "llada-0" / "model.safetensors")


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    """A config.json that names no dtype, as LLaDA-8B's."""
    return {key: value for key, value in read_config("llada-0").items() if key not in KEYS}


def cast(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return {name: weight.to(dtype) for name, weight in weights.items()}


def loaded(folder: Path, catalogue: Catalogue, asked: Any = None) -> torch.dtype:
    """The dtype that a folder loads in, which is the one that it is described in."""
    dtype = load_model(folder, "cpu", asked, catalogue).adapter.dtype
    assert describe_weights(folder, asked, catalogue=catalogue).dtype == dtype
    return dtype


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_where_nobody_says_it_is_the_weights(
    catalogue: Catalogue, tmp_path: Path, config: Any, weights: Any, dtype: torch.dtype, shards: int
) -> None:
    assert loaded(write_checkpoint(tmp_path, config, cast(weights, dtype), shards), catalogue) == dtype


def test_of_weights_in_several_dtypes_most_bytes_count(
    catalogue: Catalogue, tmp_path: Path, config: Any, weights: Any
) -> None:
    norms = {name: weight if weight.dim() == 1 else weight.bfloat16() for name, weight in weights.items()}
    assert sum(weight.dtype == torch.float32 for weight in norms.values()) * 3 > len(norms) / 2  # many, but small
    assert loaded(write_checkpoint(tmp_path / "norms", config, norms), catalogue) == torch.bfloat16
    half = {name: weight.half() if "wte" in name else weight for name, weight in norms.items()}
    assert loaded(write_checkpoint(tmp_path / "half", config, half), catalogue) == torch.bfloat16
    full = {name: weight if "ff_" in name else weight.bfloat16() for name, weight in weights.items()}
    assert loaded(write_checkpoint(tmp_path / "full", config, full), catalogue) == torch.float32


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"torch_dtype": None, "dtype": "float16"}, torch.float16),
        ({"torch_dtype": "float16", "dtype": None}, torch.float16),
        ({"torch_dtype": "float16", "dtype": "float16"}, torch.float16),
        ({"torch_dtype": "torch.float16"}, torch.float16),
        ({"dtype": "torch.float32"}, torch.float32),
        ({"torch_dtype": "auto"}, torch.bfloat16),
        ({"torch_dtype": "auto", "dtype": "float32"}, torch.float32),
        ({"torch_dtype": None, "dtype": None}, torch.bfloat16),
        ({"torch_dtype": None}, torch.bfloat16),
    ],
    ids=str,
)
def test_what_the_config_says_goes_before_the_weights(
    catalogue: Catalogue, tmp_path: Path, config: Any, weights: Any, told: dict[str, Any], expected: torch.dtype
) -> None:
    folder = write_checkpoint(tmp_path, {**config, **told}, cast(weights, torch.bfloat16))
    assert loaded(folder, catalogue) == expected
    assert loaded(folder, catalogue, "float32") == torch.float32


@pytest.mark.parametrize("asked", ["auto", None])
def test_to_ask_for_auto_is_not_to_ask(
    catalogue: Catalogue, tmp_path: Path, config: Any, weights: Any, asked: str | None
) -> None:
    folder = write_checkpoint(tmp_path, config, cast(weights, torch.bfloat16))
    assert loaded(folder, catalogue, asked) == torch.bfloat16
    assert loaded(folder, catalogue, "torch.float16") == torch.float16


def test_the_command_takes_auto(tmp_path: Path, config: Any, weights: Any, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_checkpoint(tmp_path, config, cast(weights, torch.bfloat16))
    for words in ([], ["--dtype", "auto"]):
        assert main(["doctor", "--model", str(folder), "--length", "300", *words]) == 0
        assert "in bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "value",
    [*NAMES, *OTHERS],
    ids=lambda value: repr(value)[:20],
)
def test_a_config_with_no_dtype_under_its_key_is_refused_by_that_key(
    catalogue: Catalogue, tmp_path: Path, config: Any, weights: Any, key: str, value: Any
) -> None:
    folder = write_checkpoint(tmp_path, {**config, key: value}, cast(weights, torch.bfloat16))
    for ask in (load_model, describe_weights):
        with pytest.raises(
            CheckpointError, match=rf"config.json: {key} = .*, where .*bfloat16.* is needed; pass dtype"
        ) as no:
            ask(folder, catalogue=catalogue)
        assert len(str(no.value)) < 400
    assert loaded(folder, catalogue, "bfloat16") == torch.bfloat16


def test_a_config_that_says_two_dtypes_is_refused(
    catalogue: Catalogue, tmp_path: Path, config: Any, weights: Any
) -> None:
    folder = write_checkpoint(tmp_path, {**config, "torch_dtype": "float16", "dtype": "bfloat16"}, weights)
    with pytest.raises(CheckpointError, match="torch_dtype = 'float16' and dtype = 'bfloat16' differ; pass dtype"):
        load_model(folder, "cpu", catalogue=catalogue)


def test_weights_in_float64_are_read_in_the_dtype_that_is_asked_for(
    catalogue: Catalogue, tmp_path: Path, config: Any, weights: Any
) -> None:
    folder = write_checkpoint(tmp_path, config, cast(weights, torch.float64))
    with pytest.raises(CheckpointError, match="are F64; pass dtype: float32, bfloat16, float16"):
        load_model(folder, "cpu", catalogue=catalogue)
    assert loaded(folder, catalogue, "float32") == torch.float32


def test_a_config_alone_and_a_geometry_are_described_in_float32(
    catalogue: Catalogue, tmp_path: Path, config: Any
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert describe_weights(tmp_path, catalogue=catalogue).dtype == torch.float32
    assert describe_weights(config, catalogue=catalogue).dtype == torch.float32
    assert random_model(config, "cpu", catalogue=catalogue).adapter.dtype == torch.float32


class Metadata:
    """What the hub tells of weights."""

    parameter_count: dict[str, int] = {"BF16": 1000, "F32": 400}  # noqa: RUF012


def test_of_a_hub_id_without_its_weights_the_hub_tells(
    catalogue: Catalogue, tmp_path: Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(tmp_path))
    monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", lambda name: asked.append(name) or Metadata())
    assert describe_weights("them/tiny", catalogue=catalogue).dtype == torch.bfloat16  # 2000 bytes, against 1600
    assert describe_weights("them/tiny", "float16", catalogue=catalogue).dtype == torch.float16
    assert asked == ["them/tiny"]

    def refuses(name: str) -> Any:
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.get_safetensors_metadata", refuses)
    with pytest.raises(CheckpointError, match=r"'them/tiny' names no dtype, .* the hub gave: no network; pass dtype"):
        describe_weights("them/tiny", catalogue=catalogue)
