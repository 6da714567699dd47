"""Before a model is loaded: what cannot fit is refused, what is fetched is told with its size and place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
from psutil import virtual_memory

from esdllm import Catalogue, CheckpointError, UnavailableError
from esdllm.checkpoints.loading import shipped_checkpoints
from esdllm.checkpoints.on_disk import cached_whole
from esdllm.checkpoints.pulling import Download
from esdllm.cli import loading, main
from esdllm.cli.options.generate import GenerateOptions
from esdllm.machine import Device, Machine

HUB = "somebody/some-model"


@pytest.fixture
def folder(catalogue: Catalogue, tmp_path: Path) -> Path:
    """A checkpoint in a folder of its own."""
    return Path(shutil.copytree(shipped_checkpoints(catalogue)["tiny-llada"], tmp_path / "model"))


def memory(monkeypatch: pytest.MonkeyPatch, total: int, free: int) -> None:
    here = attrs.evolve(Machine.here(), devices=(Device("cpu", "cpu", total, free),))
    monkeypatch.setattr(loading.Machine, "here", classmethod(lambda _: here))


def test_weights_that_are_larger_than_the_memory_are_refused_before_they_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory(monkeypatch, total=9_000_000, free=8_000_000)
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("it was loaded"))
    for words in (["generate", "hi"], ["infill", "a [MASK]"], ["chat"], ["generate", "-i", "a.txt", "-o", "b.jsonl"]):
        assert main([*words, "-m", str(folder), "--device", "cpu"]) == 2
        err = capsys.readouterr().err
        assert "takes 10.7 MB for its weights in bfloat16, and cpu has 9.0 MB in all; try --quantize int8" in err
        assert f"`esdllm doctor -m {folder}` says what fits" in err
    options = GenerateOptions(device="cpu", quantize="int8")
    loading.make_ready(str(folder), options, Catalogue.load())  # which fits


def test_weights_that_are_larger_than_what_is_free_get_a_hint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], catalogue: Catalogue
) -> None:
    memory(monkeypatch, total=90_000_000, free=8_000_000)
    loading.make_ready(str(folder), GenerateOptions(device="cpu"), catalogue)
    assert "hint: 10.7 MB of weights, and 8.0 MB are free on cpu" in capsys.readouterr().err
    assert virtual_memory().total > 90_000_000
    loading.make_ready("tiny-llada", GenerateOptions(device="cpu"), catalogue)  # one that ships is never asked about
    assert not capsys.readouterr().err


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> list[str]:
    """A hub that has one model, of which nothing is here; holds what was fetched of it."""
    fetched: list[str] = []
    there = Download(HUB, "0" * 40, {"model.safetensors": 16_000_000_000, "config.json": 1000}, 12_000_000_000)
    described = loading.describe_weights

    def describe(name: Any, *given: Any, **more: Any) -> Any:
        return described(folder if name == HUB else name, *given, **more)

    monkeypatch.setattr(loading, "describe_weights", describe)
    monkeypatch.setattr(loading, "cached_whole", lambda name: name in fetched)
    monkeypatch.setattr(loading, "hub_folder", lambda: tmp_path)
    monkeypatch.setattr(loading.Download, "of", classmethod(lambda _, name, catalogue: there))
    monkeypatch.setattr(loading.Download, "check_room", lambda self: None)
    monkeypatch.setattr(loading.Download, "run", lambda self, catalogue: fetched.append(self.name))
    return fetched


def test_the_first_use_of_a_hub_id_says_its_size_and_where_it_goes_and_the_second_nothing(
    hub: list[str], catalogue: Catalogue, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for _ in range(2):
        loading.make_ready(HUB, GenerateOptions(device="cpu"), catalogue)
    assert capsys.readouterr().err == f"{HUB}: 16.0 GB, 12.0 GB of it to fetch into {tmp_path}\n"
    assert hub == [HUB]


def test_neither_a_full_disk_nor_a_small_memory_lets_anything_be_fetched(
    hub: list[str], catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Download) -> None:
        raise UnavailableError("no room")

    monkeypatch.setattr(loading.Download, "check_room", full)
    with pytest.raises(UnavailableError, match="no room"):
        loading.make_ready(HUB, GenerateOptions(device="cpu"), catalogue)
    memory(monkeypatch, total=1000, free=1000)
    with pytest.raises(UnavailableError, match=r"and cpu has 1\.0 kB in all"):
        loading.make_ready(HUB, GenerateOptions(device="cpu"), catalogue)
    assert not hub


def test_what_the_hub_does_not_give_is_left_to_the_load_to_say(
    hub: list[str], catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> Download:
        raise CheckpointError("gated")

    monkeypatch.setattr(loading.Download, "of", refused)
    loading.make_ready(HUB, GenerateOptions(device="cpu"), catalogue)
    monkeypatch.setattr(loading, "describe_weights", refused)
    loading.make_ready("no/such", GenerateOptions(device="cpu"), catalogue)
    assert not hub


def test_a_model_is_whole_in_the_hub_s_cache_only_with_all_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--somebody--some-model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert not cached_whole(HUB)
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model-1.safetensors").write_bytes(b"")
    assert not cached_whole(HUB)
    (snapshot / "model-2.safetensors").write_bytes(b"")
    assert cached_whole(HUB)
    assert not cached_whole("no/such")
    assert not cached_whole("no hub id at all")
