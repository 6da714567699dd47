"""A LoRA adapter's folder loads as the model that it names, with the adapter merged into the weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CASES, read_config, write_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from esdllm import Catalogue, CheckpointError, LoadPlan, UnavailableError, describe_model, load_model
from esdllm.checkpoints.loading import describe_weights
from esdllm.cli import main
from esdllm.runtime.plain import full_logits

TOKENS = torch.randint(0, 250, (2, 13), generator=torch.Generator().manual_seed(0))
PEFT = "base_model.model."
QUERY, DOWN = "model.transformer.blocks.3.q_proj", "model.transformer.blocks.1.ff_out"
EMBEDDING = "model.transformer.wte"
CONFIG = {"peft_type": "LORA", "base_model_name_or_path": str(CASES / "llada-0"), "r": 4, "lora_alpha": 8}
Adapter = Callable[..., Path]


def drawn(seed: int, *size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed)) / 4


@pytest.fixture(scope="module")
def base() -> dict[str, Tensor]:
    return load_file(CASES / "llada-0" / "model.safetensors")


@pytest.fixture(scope="module")
def factors(base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rank 4 for two linear layers, as PEFT names them."""
    found = {}
    for seed, module in enumerate((QUERY, DOWN)):
        outputs, inputs = base[f"{module}.weight"].shape
        found[f"{PEFT}{module}.lora_A.weight"] = drawn(seed, 4, inputs)
        found[f"{PEFT}{module}.lora_B.weight"] = drawn(seed + 10, outputs, 4)
    return found


@pytest.fixture
def adapter(tmp_path: Path, factors: dict[str, Tensor]) -> Adapter:
    """Write an adapter's folder: what differs from the plain config, and other tensors if there are any."""

    def write(tensors: dict[str, Tensor] | None = None, **changes: Any) -> Path:
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}), encoding="utf-8")
        save_file(factors if tensors is None else tensors, folder / "adapter_model.safetensors")
        return folder

    return write


def merged(base: dict[str, Tensor], factors: dict[str, Tensor], **scaling: float) -> dict[str, Tensor]:
    """W + scaling B A in float64; `scaling` by the module's last name."""
    result = dict(base)
    for module in (QUERY, DOWN):
        a, b = (factors[f"{PEFT}{module}.lora_{side}.weight"].double() for side in "AB")
        change = scaling[module.rpartition(".")[2]] * b @ a
        result[f"{module}.weight"] = (base[f"{module}.weight"].double() + change).to(base[f"{module}.weight"].dtype)
    return result


def same(found: Path, expected: Path, catalogue: Catalogue, **how: Any) -> None:
    one, other = (
        full_logits(load_model(folder, "cpu", catalogue=catalogue, **how).adapter, TOKENS)
        for folder in (found, expected)
    )
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    plain = full_logits(load_model(CASES / "llada-0", "cpu", catalogue=catalogue, **how).adapter, TOKENS)
    assert (one - plain).abs().max() > 0.01


@pytest.mark.parametrize(
    ("changes", "q", "down"),
    [
        ({}, 2.0, 2.0),
        ({"lora_alpha": 3.0}, 0.75, 0.75),
        ({"use_rslora": True}, 4.0, 4.0),
        ({"alpha_pattern": {"q_proj": 4}}, 1.0, 2.0),
        ({"alpha_pattern": {DOWN: 12}}, 2.0, 3.0),
        ({"alpha_pattern": {"1.ff_out": 4}, "use_rslora": True}, 4.0, 2.0),
        ({"alpha_pattern": {"proj": 4}}, 2.0, 2.0),  # the end of a name, not of a word
        ({"rank_pattern": {"q_proj": 4, "ff_out": 4}, "r": 64}, 2.0, 2.0),
        ({"init_lora_weights": "gaussian", "use_dora": False, "task_type": "CAUSAL_LM", "bias": "none"}, 2.0, 2.0),
    ],
    ids=str,
)
def test_a_weight_becomes_itself_and_its_two_factors_scaled_product(
    catalogue: Catalogue,
    tmp_path: Path,
    adapter: Adapter,
    base: Any,
    factors: Any,
    changes: dict[str, Any],
    q: float,
    down: float,
) -> None:
    expected = write_checkpoint(
        tmp_path / "merged", read_config("llada-0"), merged(base, factors, q_proj=q, ff_out=down)
    )
    same(adapter(**changes), expected, catalogue)


def test_it_is_merged_before_weights_are_rounded_or_quantised(
    catalogue: Catalogue, tmp_path: Path, adapter: Adapter, base: Any, factors: Any
) -> None:
    expected = write_checkpoint(tmp_path / "merged", read_config("llada-0"), merged(base, factors, q_proj=2, ff_out=2))
    same(adapter(), expected, catalogue, dtype="float16")
    same(adapter(), expected, catalogue, quantize="int8-weight-only")


@pytest.mark.slow
def test_rows_are_merged_some_at_a_time_like_all_at_once(
    catalogue: Catalogue, tmp_path: Path, adapter: Adapter, base: Any, factors: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esdllm.checkpoints.weights._CHUNK", 64 * 7)  # no divisor of the rows
    expected = write_checkpoint(tmp_path / "merged", read_config("llada-0"), merged(base, factors, q_proj=2, ff_out=2))
    same(adapter(), expected, catalogue)


def test_an_embedding_s_factors_lie_the_other_way_round(
    catalogue: Catalogue, tmp_path: Path, adapter: Adapter, base: Any
) -> None:
    a, b = drawn(1, 4, 256), drawn(2, 64, 4)
    folder = adapter({f"{PEFT}{EMBEDDING}.lora_embedding_A": a, f"{PEFT}{EMBEDDING}.lora_embedding_B": b})
    weight = base[f"{EMBEDDING}.weight"] + 2 * (b @ a).T
    expected = write_checkpoint(tmp_path / "merged", read_config("llada-0"), {**base, f"{EMBEDDING}.weight": weight})
    same(folder, expected, catalogue)


@pytest.mark.parametrize("name", [f"{PEFT}{EMBEDDING}.weight", f"{PEFT}{EMBEDDING}.modules_to_save.default.weight"])
def test_a_weight_that_was_trained_whole_takes_the_old_one_s_place(
    catalogue: Catalogue, tmp_path: Path, adapter: Adapter, base: Any, name: str
) -> None:
    weight = drawn(3, 256, 64)
    expected = write_checkpoint(tmp_path / "whole", read_config("llada-0"), {**base, f"{EMBEDDING}.weight": weight})
    same(adapter({name: weight}), expected, catalogue)


def test_names_may_be_wrapped_and_carry_the_adapter_s_own(
    catalogue: Catalogue, tmp_path: Path, adapter: Adapter, base: Any, factors: Any
) -> None:
    wrapped = {
        name.replace(PEFT, f"module.{PEFT}_orig_mod.").replace(".weight", ".default.weight"): x
        for name, x in factors.items()
    }
    expected = write_checkpoint(tmp_path / "merged", read_config("llada-0"), merged(base, factors, q_proj=2, ff_out=2))
    same(adapter(wrapped), expected, catalogue)


def test_an_adapter_is_described_as_its_model_is(catalogue: Catalogue, adapter: Adapter) -> None:
    folder = adapter()
    assert describe_model(folder, catalogue) == describe_model(CASES / "llada-0", catalogue)
    assert describe_weights(folder, catalogue=catalogue) == describe_weights(CASES / "llada-0", catalogue=catalogue)


def test_a_shipped_checkpoint_s_tokenizer_serves_its_adapter(
    adapter: Adapter, capsys: pytest.CaptureFixture[str]
) -> None:
    module = "model.transformer.blocks.0.q_proj"
    tensors = {
        f"{PEFT}{module}.lora_A.weight": torch.zeros(4, 160),
        f"{PEFT}{module}.lora_B.weight": torch.zeros(160, 4),
    }
    folder = adapter(tensors, base_model_name_or_path="tiny-llada")
    said = []
    for model in (str(folder), "tiny-llada"):
        assert main(["generate", "What is 12 + 7?", "--model", model, "--gen-length", "8", "--block-length", "8"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"peft_type": "IA3"}, "peft_type = 'IA3' is not implemented"),
    ({"peft_type": "PROMPT_TUNING"}, "peft_type = 'PROMPT_TUNING' is not implemented"),
    ({"peft_type": None}, "peft_type = None is not implemented"),
    ({"use_dora": True}, "use_dora = True is not implemented; merge it with PEFT's"),
    ({"lora_bias": True}, "lora_bias = True"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out = True"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
    ({"init_lora_weights": "loftq"}, "init_lora_weights = 'loftq'"),
    ({"layer_replication": [[0, 4], [2, 5]]}, "layer_replication = "),
    ({"trainable_token_indices": [3]}, "trainable_token_indices = "),
    ({"alpha_pattern": {"^model.*q_proj": 4}}, r"alpha_pattern has the pattern '\^model"),
    ({"alpha_pattern": {"q_proj": "4"}}, "lora_alpha = '4', where a number above 0"),
    ({"alpha_pattern": [4]}, r"alpha_pattern = \[4\], where an object"),
    ({"lora_alpha": float("nan")}, "lora_alpha = nan, where a number above 0"),
    ({"lora_alpha": None}, "lora_alpha = None"),
    ({"r": 0}, "r = 0, where a number above 0"),
    ({"r": True}, "r = True"),
    ({"r": 8}, r"the shapes \(4, \d+\) and \(64, 4\) for '.*', which is \(64, \d+\); with r = 8"),
    ({"base_model_name_or_path": None}, "base_model_name_or_path = None, where the folder or hub id"),
    ({"base_model_name_or_path": ["a"]}, r"base_model_name_or_path = \['a'\]"),
    ({"base_model_name_or_path": "/no/such"}, "was trained on '/no/such': no checkpoint '/no/such'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=str)
def test_what_is_not_implemented_is_refused_by_its_key(
    catalogue: Catalogue, adapter: Adapter, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(adapter(**changes), "cpu", catalogue=catalogue)


def test_tensors_that_are_not_the_model_s_are_named(catalogue: Catalogue, adapter: Adapter, factors: Any) -> None:
    a, b = f"{PEFT}{QUERY}.lora_A.weight", f"{PEFT}{QUERY}.lora_B.weight"

    def refused(tensors: dict[str, Tensor], message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_model(adapter(tensors), "cpu", catalogue=catalogue)

    refused({a: factors[a]}, "has A alone for 'model.transformer.blocks.3.q_proj.weight'")
    refused({a: factors[a], b: drawn(0, 32, 4)}, r"the shapes \(4, 64\) and \(32, 4\)")
    refused({a: factors[a], b: drawn(0, 64)}, "is no matrix of finite numbers")
    refused({a: factors[a], b: factors[b] * float("inf")}, "is no matrix of finite numbers")
    refused({a: factors[a], b: factors[b].to(torch.int8)}, "holds I8")
    refused(
        {**factors, f"{PEFT}{QUERY}.lora_magnitude_vector": drawn(0, 64)},
        "changes '.*lora_magnitude_vector', which is none",
    )
    refused(
        {name.replace("blocks.3", "blocks.99"): x for name, x in factors.items()},
        "changes 'model.*blocks.99.*', which is",
    )
    refused(
        {f"{PEFT}{EMBEDDING}.weight": drawn(0, 260, 64)}, r"has the shape \(260, 64\), but config.json says \(256, 64\)"
    )


def test_a_folder_that_is_no_adapter_or_two_things_says_so(
    catalogue: Catalogue, tmp_path: Path, adapter: Adapter
) -> None:
    folder = adapter()
    other = adapter(base_model_name_or_path=str(folder))
    with pytest.raises(CheckpointError, match="which is an adapter too; merge that first"):
        load_model(other, "cpu", catalogue=catalogue)
    (folder / "adapter_model.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="holds both a model's weights and an adapter"):
        load_model(folder, "cpu", catalogue=catalogue)
    folder = adapter()
    (folder / "model.safetensors").unlink()
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"an adapter's config but no adapter_model\.safetensors; other formats"):
        load_model(folder, "cpu", catalogue=catalogue)


def test_a_family_that_merges_none_says_so(tmp_path: Path) -> None:
    plan = LoadPlan(torch.float32, torch.device("cpu"), lora=tmp_path)
    with pytest.raises(UnavailableError, match=r"Mine merges no LoRA adapters; merge .* with PEFT's merge_and_unload"):
        plan.only("Mine")
    plan.only("Mine", merge=True)
