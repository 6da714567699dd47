"""Checkpoints in, logits out: the same as transformers' layers under the public names give."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CASES, write_checkpoint
from lookalikes import bidirectional_logits, dream_config, llada_config, llada_weights, llama, qwen2
from torch import Tensor

from esdllm import Catalogue, CheckpointError, Engine, UnavailableError, describe_model, load_model
from esdllm.runtime.plain import full_logits

TOKENS = torch.randint(0, 256, (2, 23), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def originals() -> dict[str, tuple[Any, dict[str, Any], dict[str, Tensor]]]:
    """By family: the transformers model, the config.json and the weights of its checkpoint."""
    wide, narrow, qwen = llama(), llama(kv_heads=2), qwen2()
    return {
        "llada": (wide, llada_config(4), llada_weights(wide)),
        "llada with n_kv_heads null": (wide, llada_config(None), llada_weights(wide)),
        "llada with grouped heads": (narrow, llada_config(2), llada_weights(narrow)),
        "dream": (qwen, dream_config(), {name: weight.clone() for name, weight in qwen.state_dict().items()}),
    }


FAMILIES = ("llada", "llada with n_kv_heads null", "llada with grouped heads", "dream")


def test_the_originals_read_in_both_directions(originals: Any) -> None:
    changed = TOKENS.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 256
    for model, _, _ in originals.values():
        before, after = bidirectional_logits(model, TOKENS), bidirectional_logits(model, changed)
        assert (before[:, 0] - after[:, 0]).abs().max() > 1e-2


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(
    originals: Any, catalogue: Catalogue, tmp_path: Path, family: str, shards: int
) -> None:
    model, config, weights = originals[family]
    folder = write_checkpoint(tmp_path / "it", config, weights, shards)
    adapter = load_model(folder, "cpu", catalogue=catalogue).adapter
    expected = bidirectional_logits(model, TOKENS)
    assert expected.std() > 0.5
    torch.testing.assert_close(full_logits(adapter, TOKENS), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["llada", "dream"])
@pytest.mark.parametrize(("stored", "asked"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("bfloat16", None)])
def test_weights_are_converted_to_the_dtype_asked_for(
    originals: Any, catalogue: Catalogue, tmp_path: Path, family: str, stored: str, asked: str | None
) -> None:
    model, config, weights = originals[family]
    kept = {name: weight.to(getattr(torch, stored)) for name, weight in weights.items()}
    folder = write_checkpoint(tmp_path, {**config, "torch_dtype": stored}, kept)
    adapter = load_model(folder, "cpu", asked, catalogue).adapter
    expected = bidirectional_logits(model, TOKENS)
    assert adapter.dtype == getattr(torch, asked or stored)
    assert full_logits(adapter, TOKENS).dtype == adapter.dtype
    assert (full_logits(adapter, TOKENS).float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_a_dtype_may_be_torchs_own_and_the_newer_key_is_read(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CASES / "llada-0", tmp_path / "it"))
    config = json.loads((folder / "config.json").read_text())
    del config["torch_dtype"]
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert load_model(folder, "cpu", catalogue=catalogue).adapter.dtype == torch.bfloat16
    assert load_model(folder, "cpu", torch.float16, catalogue).adapter.dtype == torch.float16


def test_a_description_reads_no_weights(originals: Any, catalogue: Catalogue, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, originals["dream"][1], {})
    (folder / "model.safetensors").unlink()
    spec = describe_model(folder, catalogue)
    assert (spec.family, spec.n_layers, spec.hidden, spec.n_heads, spec.n_kv_heads) == ("Dream", 3, 32, 4, 2)
    assert (spec.head_dim, spec.vocab, spec.mask_id, spec.eos_id, spec.logit_shift) == (8, 256, 254, 253, 1)
    assert spec.context == 131072


def test_a_shipped_checkpoint_loads_by_its_name(catalogue: Catalogue) -> None:
    model = load_model("tiny-llada", "cpu", catalogue=catalogue)
    assert model.spec.family == "llada"
    assert model.codec is not None
    assert full_logits(model.adapter, torch.tensor([[1, 2, model.spec.mask_id]])).isfinite().all()


@pytest.mark.parametrize(("device", "reason"), [("tpu9", "tpu9"), ("cuda:77", "cuda:77"), ("", "''")])
def test_a_device_that_is_not_there_is_named(catalogue: Catalogue, device: str, reason: str) -> None:
    with pytest.raises(UnavailableError, match=f"the device '{device}' is not available here .*; use cpu"):
        load_model(CASES / "llada-0", device, catalogue=catalogue)


@pytest.mark.parametrize("dtype", ["float64", "bf16", torch.int8])
def test_a_dtype_that_is_not_served_is_named(catalogue: Catalogue, dtype: Any) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UnavailableError, match=f"the dtype '{name}' is not available; .*known: bfloat16, float16, flo"):
        load_model(CASES / "llada-0", "cpu", dtype, catalogue)


@pytest.fixture
def hub(tmp_path: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a line of Python offline, with a hub cache that holds the checkpoint `them/tiny`."""
    repository = tmp_path / "models--them--tiny"
    snapshot = repository / "snapshots" / ("0" * 39 + "1")
    (repository / "blobs").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name, encoding="utf-8")
    snapshot.mkdir(parents=True)
    for number, name in enumerate(("config.json", "model.safetensors")):  # links to blobs, as the hub makes them
        shutil.copy(CASES / "llada-0" / name, repository / "blobs" / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")

    def run(line: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
        code = f"import esdllm\n{line}"
        return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_a_hub_id_is_found_in_the_cache_or_named(hub: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    lines = (
        "print(esdllm.load_model('them/tiny', 'cpu').spec.n_layers, esdllm.describe_model('them/tiny').vocab)",
        "try: esdllm.load_model('them/other', 'cpu')",
        "except esdllm.CheckpointError as error: print(error)",
    )
    result = hub("\n".join(lines))
    assert result.returncode == 0, result.stderr
    found, error = result.stdout.strip().split("\n")
    assert found == "8 256"
    assert error.startswith("'them/other' is no local folder, and the hub gave: ")
    assert "HF_HUB_OFFLINE" in error


def test_nothing_in_a_checkpoint_is_run(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CASES / "dream-0", tmp_path / "it"))
    for name in ("modeling_dream", "configuration_dream", "tokenization_dream"):
        (folder / f"{name}.py").write_text("raise SystemExit('ran')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_dream.DreamModel", "AutoConfig": "configuration_dream.DreamConfig"}
    (folder / "config.json").write_text(json.dumps(config))
    model = load_model(folder, "cpu", catalogue=catalogue)
    settings = {"gen_length": 4, "block_length": 4}
    assert Engine.build(model, catalogue.configure("vanilla", settings=settings), catalogue).generate([[1]]).steps == 4
    assert not {"modeling_dream", "configuration_dream", "tokenization_dream"} & set(sys.modules)
    assert not any(folder.rglob("*.pyc"))


def test_a_checkpoint_that_cannot_be_found_is_named(catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint 'tiny-lada': not a folder, .*did you mean 'tiny-llada'"):
        load_model("tiny-lada", "cpu", catalogue=catalogue)
    for missing in (tmp_path / "nowhere", "./nowhere", "~/nowhere-at-all/x", "a/b/c"):
        with pytest.raises(CheckpointError, match=f"no checkpoint '{missing}': not a folder"):
            load_model(missing, "cpu", catalogue=catalogue)
