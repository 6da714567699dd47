"""The sizes that config.json states are compared with the weights' headers before any memory is taken for weights."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CASES, read_config, write_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from esdllm import Catalogue, CheckpointError, load_model
from esdllm.checkpoints import weights

LAYER = "model.transformer.blocks.{}."
WORDS, HEAD = "model.transformer.wte.weight", "model.transformer.ff_out.weight"
FITS = "would fit the weights"


class Allocations(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.largest = max(self.largest, made.nbytes)
        return made


def weights_of(name: str) -> dict[str, Tensor]:
    return load_file(CASES / name / "model.safetensors")


def refused(folder: Path, catalogue: Catalogue, *parts: str) -> None:
    """Expect a refusal that has all parts, and that made no tensor worth naming."""
    with Allocations() as seen, pytest.raises(CheckpointError) as caught:
        load_model(folder, "cpu", catalogue=catalogue)
    for part in parts:
        assert part in str(caught.value)
    assert seen.largest < 1000


@pytest.mark.parametrize(
    ("case", "change", "parts"),
    [
        # a size that is too large or small: the key and value, the tensor and its shape, what would fit
        (
            "llada-0",
            {"embedding_size": 300},
            ("embedding_size = 300", f"'{WORDS}'", "(256, 64)", "(300, 64)", "= 256 "),
        ),
        ("llada-0", {"embedding_size": 2**24}, ("embedding_size = 16777216", f"embedding_size = 256 {FITS}")),
        ("llada-0", {"embedding_size": None, "vocab_size": 300}, ("vocab_size = 300", f"vocab_size = 256 {FITS}")),
        ("llada-0", {"d_model": 128}, ("by d_model = 128", f"'{WORDS}'", f"d_model = 64 {FITS}")),
        ("llada-0", {"d_model": 2**20}, ("by d_model = 1048576", f"d_model = 64 {FITS}")),
        ("llada-0", {"mlp_hidden_size": 256}, ("mlp_hidden_size = 256", ".ff_proj.weight'", "mlp_hidden_size = 192 ")),
        ("llada-0", {"mlp_hidden_size": None, "mlp_ratio": 4}, ("mlp_ratio = 4 times d_model = 64", "mlp_ratio = 3 ")),
        ("llada-0", {"n_kv_heads": 2}, ("n_kv_heads = 2 times d_model / n_heads = 16", "k_proj", "n_kv_heads = 4 ")),
        (
            "dream-0",
            {"vocab_size": 300},
            ("vocab_size = 300", "'model.embed_tokens.weight'", f"vocab_size = 256 {FITS}"),
        ),
        ("dream-0", {"hidden_size": 32}, ("hidden_size = 32", f"hidden_size = 64 {FITS}")),
        ("dream-0", {"num_key_value_heads": 4}, ("num_key_value_heads = 4 times", f"num_key_value_heads = 2 {FITS}")),
        ("dream-0", {"num_attention_heads": 8}, ("num_key_value_heads = 2 times", "or another hidden_size / num_att")),
        ("dream-0", {"intermediate_size": 10**7}, ("intermediate_size = 10000000", f"intermediate_size = 192 {FITS}")),
        # another number of layers
        ("llada-0", {"n_layers": 9}, ("n_layers = 9", "of 8 layers", f"'{LAYER.format(7)}", "n_layers = 8 would fit")),
        ("llada-0", {"n_layers": 10_000}, ("n_layers = 10000", "n_layers = 8 would fit")),
        ("llada-0", {"n_layers": 3}, ("n_layers = 3", "of 8 layers", "n_layers = 8 would fit", "unexpected: ")),
        (
            "dream-0",
            {"num_hidden_layers": 4},
            ("num_hidden_layers = 4", "num_hidden_layers = 8 would fit", "the shape ("),
        ),
        # what is refused by config.json alone
        ("llada-0", {"embedding_size": 10**9}, ("embedding_size = 1000000000, where a whole number from 1",)),
        ("llada-0", {"n_heads": 7, "n_kv_heads": 7}, ("7 heads", "do not divide evenly")),
    ],
)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_config_that_contradicts_the_weights_is_refused_by_its_key(
    catalogue: Catalogue, tmp_path: Path, case: str, change: Mapping[str, Any], parts: tuple[str, ...], shards: int
) -> None:
    folder = write_checkpoint(tmp_path, {**read_config(case), **change}, weights_of(case), shards)
    refused(folder, catalogue, *parts)


def test_the_value_that_is_said_to_fit_does(catalogue: Catalogue, tmp_path: Path) -> None:
    right, weights = read_config("dream-0"), weights_of("dream-0")
    for key in ("vocab_size", "hidden_size", "num_key_value_heads", "intermediate_size", "num_hidden_layers"):
        folder = write_checkpoint(tmp_path / key, {**right, key: 4 if key == "num_key_value_heads" else 320}, weights)
        with pytest.raises(CheckpointError) as caught:
            load_model(folder, "cpu", catalogue=catalogue)
        told = re.search(rf"{key} = (\d+) would fit", str(caught.value))
        assert told
        assert int(told[1]) == right[key]


@pytest.mark.parametrize("name", [WORDS, HEAD, LAYER.format(5) + "k_proj.weight", LAYER.format(0) + "ff_out.weight"])
def test_one_tensor_of_another_shape_is_no_matter_of_config(catalogue: Catalogue, tmp_path: Path, name: str) -> None:
    weights = weights_of("llada-0")
    shape = tuple(weights[name].shape)
    folder = write_checkpoint(tmp_path, read_config("llada-0"), {**weights, name: torch.zeros(shape[0] - 2, shape[1])})
    refused(
        folder,
        catalogue,
        f"'{name}' has the shape {(shape[0] - 2, shape[1])}, but config.json says {shape}",
        "fits all of",
    )


@pytest.mark.parametrize("shape", [(), (64,), (256, 64, 1), (0, 64)])
def test_a_tensor_of_other_dimensions_is_named_with_both_shapes(
    catalogue: Catalogue, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    folder = write_checkpoint(tmp_path, read_config("llada-0"), {**weights_of("llada-0"), WORDS: torch.zeros(shape)})
    refused(folder, catalogue, f"'{WORDS}' has the shape {shape}, but config.json says (256, 64)")


def test_layers_are_told_only_where_all_of_them_are_there(catalogue: Catalogue, tmp_path: Path) -> None:
    config, weights = read_config("llada-0"), weights_of("llada-0")
    without = {name: x for name, x in weights.items() if not name.startswith(LAYER.format(4))}
    for number, changed in enumerate(
        (
            without,  # a hole
            {name: x for name, x in weights.items() if name != LAYER.format(7) + "k_proj.weight"},
            {**weights, LAYER.format(8) + "extra.weight": torch.zeros(1)},
            {**weights, LAYER.format("9" * 5000) + "k_proj.weight": torch.zeros(1)},
            {**weights, LAYER.format(999_999) + "k_proj.weight": torch.zeros(1)},
        )
    ):
        with pytest.raises(CheckpointError, match=r"describes; (missing|unexpected): ") as caught:
            load_model(write_checkpoint(tmp_path / str(number), config, changed), "cpu", catalogue=catalogue)
        assert "n_layers" not in str(caught.value)


def test_wrapped_names_are_compared_as_others_are(catalogue: Catalogue, tmp_path: Path) -> None:
    weights = {f"base_model.model.{name}": x for name, x in weights_of("llada-0").items()}
    folder = write_checkpoint(tmp_path / "a", {**read_config("llada-0"), "embedding_size": 300}, weights)
    refused(folder, catalogue, f"'base_model.model.{WORDS}'", f"embedding_size = 256 {FITS}")
    folder = write_checkpoint(tmp_path / "b", {**read_config("llada-0"), "n_layers": 5}, weights)
    refused(folder, catalogue, "n_layers = 8 would fit")


def test_a_head_that_is_tied_may_be_there_in_any_shape(catalogue: Catalogue, tmp_path: Path) -> None:
    config, weights = {**read_config("llada-0"), "weight_tying": True}, weights_of("llada-0")
    folder = write_checkpoint(tmp_path / "a", config, {**weights, HEAD: torch.zeros(3, 3)})
    assert load_model(folder, "cpu", catalogue=catalogue).spec.vocab == 256
    folder = write_checkpoint(tmp_path / "b", {**config, "embedding_size": 300}, weights)
    refused(folder, catalogue, f"embedding_size = 256 {FITS}")


def test_an_adapter_s_weights_are_compared_too_and_the_model_s_first(catalogue: Catalogue, tmp_path: Path) -> None:
    config, weights = read_config("llada-0"), weights_of("llada-0")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file({f"base_model.model.{WORDS}": torch.zeros(300, 64)}, adapter / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": str(tmp_path / "base")}
    (adapter / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    write_checkpoint(tmp_path / "base", config, weights)
    refused(adapter, catalogue, "adapter_model.safetensors", "(300, 64), but config.json says (256, 64)")
    write_checkpoint(tmp_path / "base", {**config, "embedding_size": 300}, weights)
    refused(adapter, catalogue, "model.safetensors: ", "has the shape (256, 64)", f"embedding_size = 256 {FITS}")


def test_a_file_of_many_small_tensors_is_opened_few_times(
    catalogue: Catalogue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []
    original = weights.open_file
    monkeypatch.setattr(weights, "open_file", lambda path: opened.append(path) or original(path))
    expected = weights_of("llada-0")
    for shards in (1, 2):
        opened.clear()
        adapter: Any = load_model(
            write_checkpoint(tmp_path / str(shards), read_config("llada-0"), expected, shards),
            "cpu",
            catalogue=catalogue,
        ).adapter
        assert adapter.embedding.equal(expected[WORDS])
        assert len(opened) == 1 if shards == 1 else len(opened) < len(expected)
    monkeypatch.setattr(
        weights, "_CHUNK", 5000
    )  # an embedding is read in several parts then, and opened again for each
    opened.clear()
    adapter = load_model(CASES / "llada-0", "cpu", catalogue=catalogue).adapter
    assert adapter.embedding.equal(expected[WORDS])
    assert len(opened) > sum(x.numel() for x in expected.values()) / 5000
