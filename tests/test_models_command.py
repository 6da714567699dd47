"""`esdllm models`: what is known, what is here, what is fetched and what is not."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from helpers import CASES, MASK, read_config
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from esdllm import Catalogue, CheckpointError, Published, UnavailableError, describe_model, load_model
from esdllm.checkpoints.loading import describe_weights
from esdllm.checkpoints.on_disk import in_folders, in_hub_cache
from esdllm.checkpoints.published import hub_id, known_checkpoints, told_of
from esdllm.checkpoints.pulling import Download
from esdllm.cli import main
from esdllm.measure.cards import Card, presets_that_suit
from esdllm_models.families.llada import LladaFamily

KNOWN = {
    "made/Up-8B-Instruct": Published(8.0, "MIT"),
    "made/Up-16B": Published(16.0, "Apache-2.0", active=1.4, block_size=32, lacks=f"mask_token_id={MASK}"),
    "other/Up-16B": Published(16.0, "", block_size=4),
}
SHA = "0123456789abcdef0123456789abcdef01234567"
Usage = namedtuple("Usage", "total used free")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esdllm_models.families.common.PUBLISHED", {"llada": KNOWN})
    monkeypatch.setattr(
        LladaFamily, "verified", "logits of a tiny random checkpoint; public weights not tried", raising=False
    )
    monkeypatch.setattr(LladaFamily, "suits", ("es-dllm/", "vanilla"), raising=False)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's, which is online."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def command(*words: str) -> tuple[int, str, str]:
        code = main(["models", *words])
        streams = capsys.readouterr()
        return code, streams.out, " ".join(streams.err.split())

    return command


def put(cache: Path, name: str, files: dict[str, bytes], sha: str = SHA) -> Path:
    """Put a repository into the hub's cache, as huggingface_hub lays it out."""
    repo = cache / f"models--{name.replace('/', '--')}"
    snapshot = repo / "snapshots" / sha
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir(exist_ok=True)
    (repo / "refs" / "main").write_text(sha)
    (repo / "blobs").mkdir(exist_ok=True)
    for number, (file, content) in enumerate(files.items()):
        blob = repo / "blobs" / f"{sha}-{number}"
        blob.write_bytes(content)
        (snapshot / file).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def config_of(**changed: Any) -> bytes:
    return json.dumps({**read_config("llada-0"), **changed}).encode()


WEIGHTS = (CASES / "llada-0" / "model.safetensors").read_bytes()
INDEX = json.dumps(
    {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
).encode()


# list


def test_the_list_keeps_its_shape_at_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    put(cache, "made/Up-8B-Instruct", {"config.json": config_of(), "model.safetensors": WEIGHTS})
    code, out, _ = run()
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    rows = [line.split() for line in out.splitlines()]
    assert next(row for row in rows if "8B" in row)[:4] == ["made/Up-8B-Instruct", "8B", "all", "MIT"]
    assert ["made/Up-16B", "16B,", "1.4B", "active", "blocks", "of", "32", "Apache-2.0"] in rows
    assert "verified: logits of a tiny random checkpoint; public weights not tried" in " ".join(out.split())
    assert "tiny-llada" in out
    assert run("list")[1] == out


def test_json_has_all_that_is_known_and_here(run: Run, cache: Path, tmp_path: Path) -> None:
    put(cache, "made/Up-8B-Instruct", {"config.json": config_of(), "model.safetensors": WEIGHTS})
    shutil.copytree(CASES / "llada-0", tmp_path / "work" / "mine")
    told = json.loads(run("--json")[1])
    assert told == json.loads(run("list", "--json")[1])
    family = next(one for one in told["families"] if one["name"] == "llada")
    assert family["model_types"] == ["llada"]
    assert family["ships"] == ["tiny-llada"]
    by_name = {one["name"]: one for one in told["checkpoints"]}
    assert by_name["made/Up-16B"] == {
        "name": "made/Up-16B",
        "family": "llada",
        "told": f"llada,mask_token_id={MASK}",
        "parameters": 16.0,
        "licence": "Apache-2.0",
        "active": 1.4,
        "block_size": 32,
        "lacks": f"mask_token_id={MASK}",
        "on_disk": None,
    }
    here = {one["name"]: one for one in told["on_disk"]}
    assert by_name["made/Up-8B-Instruct"]["on_disk"] == here["made/Up-8B-Instruct"]["size"] > len(WEIGHTS)
    assert here["mine"]["family"] == "llada"
    assert here["mine"]["complete"]


def test_a_cache_says_what_of_it_is_whole_and_whose_it_is(cache: Path, catalogue: Catalogue) -> None:
    put(cache, "a/whole", {"config.json": config_of(), "model.safetensors": WEIGHTS})
    put(cache, "b/config-alone", {"config.json": config_of()})
    put(
        cache,
        "c/half",
        {"config.json": config_of(), "model.safetensors.index.json": INDEX, "model-00001-of-00002.safetensors": b"."},
    )
    put(cache, "d/damaged", {"config.json": b"{", "model.safetensors": b"."})
    put(cache, "e/bert", {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"."})
    put(cache, "f/no-config", {"tokenizer.json": b"{}"})
    put(cache, "g/not-a-model", {"config.json": b'{"some": "tool"}'})
    put(cache, "made/Up-16B", {"config.json": b'{"model_type": "says something else"}', "model.safetensors": b"."})
    (cache / "datasets--a--set").mkdir()
    found = {one.name: (one.complete, one.family) for one in in_hub_cache(catalogue)}
    assert found == {
        "a/whole": (True, "llada"),
        "b/config-alone": (False, "llada"),
        "c/half": (False, "llada"),
        "d/damaged": (False, None),
        "made/Up-16B": (True, "llada"),
    }


def test_no_cache_and_empty_folders_hold_nothing(cache: Path, catalogue: Catalogue, tmp_path: Path) -> None:
    assert in_hub_cache(catalogue) == []
    assert in_folders([tmp_path, tmp_path / "nowhere"], catalogue) == []


def test_a_folder_is_looked_through_one_level_deep_and_each_checkpoint_told_once(
    tmp_path: Path, catalogue: Catalogue
) -> None:
    for name in ("one", "two/deep", "three"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_bytes(config_of())
    (tmp_path / "three" / "model.safetensors").write_bytes(WEIGHTS)
    found = in_folders([tmp_path, tmp_path / "three", tmp_path / "two"], catalogue)
    assert sorted((Path(one.name).name, one.complete) for one in found) == [
        ("deep", False),
        ("one", False),
        ("three", True),
    ]


# names


def test_a_name_without_a_slash_is_the_end_of_a_known_hub_id(catalogue: Catalogue) -> None:
    assert hub_id("Up-8B-Instruct", catalogue) == "made/Up-8B-Instruct"
    assert hub_id("up-8b-instruct", catalogue) == "made/Up-8B-Instruct"
    assert hub_id("some/Thing", catalogue) == "some/Thing"
    with pytest.raises(CheckpointError, match="'Up-16B' may be made/Up-16B or other/Up-16B; give the whole hub id"):
        hub_id("Up-16B", catalogue)
    for name in ("Up-8B-Instuct", "a/b/c", "/x", "x/"):
        with pytest.raises(CheckpointError, match="no hub id and no known checkpoint"):
            hub_id(name, catalogue)
    with pytest.raises(CheckpointError, match=r"did you mean 'Up-8B-Instruct'\?"):
        hub_id("Up-8B-Instuct", catalogue)


def test_a_known_hub_id_needs_no_word_of_the_user(cache: Path, catalogue: Catalogue) -> None:
    lacking = {key: value for key, value in read_config("llada-0").items() if key != "mask_token_id"}
    put(cache, "made/Up-16B", {"config.json": json.dumps(lacking).encode(), "model.safetensors": WEIGHTS})
    put(cache, "made/stranger", {"config.json": json.dumps(lacking).encode(), "model.safetensors": WEIGHTS})
    assert told_of(None, "made/Up-16B", catalogue).over == {"mask_token_id": MASK}
    assert told_of("llada,mask_token_id=3", "made/Up-16B", catalogue).over == {"mask_token_id": 3}
    assert list(known_checkpoints(catalogue)) == list(KNOWN)


# pull


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> SimpleNamespace:
    """A hub with one repository, which notes what is fetched of it."""
    stand = SimpleNamespace(files={}, asked=[], fetched=[], error=None, late=None)

    def model_info(self: Any, name: str, files_metadata: bool = False) -> Any:
        assert files_metadata
        stand.asked.append(name)
        if stand.error:
            raise stand.error
        siblings = [SimpleNamespace(rfilename=file, size=len(content)) for file, content in stand.files.items()]
        return SimpleNamespace(sha=SHA, siblings=siblings)

    def snapshot_download(name: str, revision: str | None = None, allow_patterns: list[str] | None = None) -> str:
        wanted = [file for file in stand.files if file in (allow_patterns or [])]
        if stand.late and revision:
            raise stand.late
        stand.fetched += wanted
        repo = cache / f"models--{name.replace('/', '--')}"
        shutil.rmtree(repo, ignore_errors=True)
        return str(put(cache, name, {file: stand.files[file] for file in wanted}))

    def described(name: str, *given: Any, **named: Any) -> Any:
        folder = cache.parent / "described"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_bytes(stand.files["config.json"])
        return describe_model(folder, *given, **named)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr("esdllm.cli.models.describe_model", described)
    stand.files = {
        "config.json": config_of(),
        "model.safetensors": WEIGHTS,
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}",
        "chat_template.jinja": b"x",
        "merges.txt": b"x",
        "modeling_made.py": b"import os",
        "pytorch_model.bin": b"pickle",
        "training_args.pt": b"pickle",
        "onnx/model.safetensors": b"other weights",
        "original/params.json": b"{}",
        "figure.png": b"x",
    }
    return stand


READ = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "merges.txt",
}


def test_code_pickles_and_what_lies_in_folders_are_never_fetched(run: Run, hub: SimpleNamespace, cache: Path) -> None:
    code, out, err = run("pull", "Up-8B-Instruct")
    assert code == 0
    assert set(hub.fetched) == READ
    assert hub.asked == ["made/Up-8B-Instruct"]
    assert Path(out.strip()) == cache / "models--made--Up-8B-Instruct" / "snapshots" / SHA
    assert "made/Up-8B-Instruct: llada, 0.0 GB" in err
    assert 'esdllm generate "…" --model made/Up-8B-Instruct' in err
    assert json.loads(run("pull", "Up-8B-Instruct", "--json")[1])["family"] == "llada"


def test_only_what_is_not_here_yet_counts(hub: SimpleNamespace, cache: Path, catalogue: Catalogue) -> None:
    whole = Download.of("some/Thing", catalogue)
    assert set(whole.sizes) == READ
    assert whole.missing == whole.size == sum(len(hub.files[file]) for file in READ)
    put(cache, "some/Thing", {"model.safetensors": WEIGHTS})
    assert Download.of("some/Thing", catalogue).missing == whole.size - len(WEIGHTS)


def test_a_disk_without_room_is_refused_before_anything_is_fetched(
    run: Run, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10, 10, 1000))
    code, _, err = run("pull", "Up-8B-Instruct")
    assert code == 2
    assert "takes 0.0 GB more, and" in err
    assert "has 0.0 GB free; make room, or let HF_HOME name a folder on another disk" in err
    assert hub.fetched == []


def test_what_no_family_reads_is_refused_before_anything_is_fetched(run: Run, hub: SimpleNamespace) -> None:
    hub.files["config.json"] = b'{"model_type": "bert"}'
    assert "the model_type 'bert' is not implemented" in run("pull", "some/Bert")[2]
    del hub.files["config.json"]
    assert "'some/Bert' holds no config.json" in run("pull", "some/Bert")[2]
    del hub.files["model.safetensors"]
    assert "'some/Bert' holds no safetensors; weights in other files are pickles" in run("pull", "some/Bert")[2]
    assert hub.fetched == []


def _answer(status: int) -> Any:
    import httpx

    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/x"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            lambda: GatedRepoError("no", response=_answer(403)),
            "'made/Up-8B-Instuct' is gated: ask for access on https://hugging",
        ),
        (
            lambda: RepositoryNotFoundError("no", response=_answer(404)),
            "the hub has no 'made/Up-8B-Instuct', or it is private",
        ),
        (lambda: RepositoryNotFoundError("no", response=_answer(404)), "did you mean 'made/Up-8B-Instruct'?"),
        (
            lambda: HfHubHTTPError("bad token", response=_answer(401)),
            "the hub refuses 'made/Up-8B-Instuct': bad token; log in",
        ),
        (
            lambda: HfHubHTTPError("busy", response=_answer(503)),
            "cannot fetch 'made/Up-8B-Instuct': busy; the same command goes on",
        ),
        (lambda: OSError("no route to host"), "cannot fetch 'made/Up-8B-Instuct': no route to host"),
        (lambda: TimeoutError(), "cannot fetch 'made/Up-8B-Instuct': TimeoutError"),
    ],
)
def test_what_the_hub_answers_is_told_in_a_line(
    run: Run, hub: SimpleNamespace, error: Callable[[], Exception], message: str
) -> None:
    hub.error = error()
    code, out, err = run("pull", "made/Up-8B-Instuct")
    assert (code, out) == (2, "")
    assert message in err


def test_a_download_that_breaks_off_says_how_it_goes_on(run: Run, hub: SimpleNamespace) -> None:
    hub.late = OSError("connection reset")
    assert "connection reset; the same command goes on once the network is back" in run("pull", "some/Thing")[2]
    hub.late = None
    assert run("pull", "some/Thing")[0] == 0


def test_offline_nothing_is_asked(run: Run, hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "cannot fetch 'some/Thing': HF_HUB_OFFLINE says to stay offline; unset it" in run("pull", "some/Thing")[2]
    assert hub.asked == []


# show


def test_a_card_has_the_memory_that_weights_held_in_each_way_take(catalogue: Catalogue) -> None:
    card = Card.of("tiny-llada", catalogue, length=512, batch=2, device="cpu")
    assert [(one.dtype, one.quantize) for one in card.held] == [
        ("float32", None),
        ("bfloat16", None),
        ("bfloat16", "int4-weight-only"),
        ("bfloat16", "int8"),
        ("bfloat16", "int8-weight-only"),
    ]
    for one in card.held:
        weights = describe_weights("tiny-llada", one.dtype, one.quantize, catalogue)
        assert one.fit.weights == weights.bytes
        assert one.fit.device() == weights.bytes + one.fit.work + one.fit.cache.device
    spec = load_model("tiny-llada", "cpu", "float32").spec
    keys = 2 * 2 * spec.n_layers * 512 * spec.n_kv_heads * spec.head_dim  # and values, of two rows
    assert card.held[0].fit.cache.device >= 4 * keys
    assert 2 * keys <= card.held[1].fit.cache.device < 4 * keys


def test_a_card_names_what_it_is_told_of(run: Run, tmp_path: Path, cache: Path) -> None:
    put(cache, "made/Up-8B-Instruct", {"config.json": config_of(), "model.safetensors": WEIGHTS})
    shutil.copytree(CASES / "llada-0", tmp_path / "work" / "mine")
    for name, family in (("tiny-dream", "Dream"), ("llada-8b", "llada"), ("mine", "llada")):
        told = json.loads(run("show", name, "--json", "--length", "128")[1])
        assert told["name"] == name
        assert told["spec"]["family"] == family
        assert told["published"] is None
        assert told["length"] == 128
    code, out, _ = run("show", "llada-8b")
    assert code == 0
    assert "logits of a tiny random checkpoint; public weights not tried" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80
    assert "no hub id and no known checkpoint 'llada-9b'" in run("show", "llada-9b")[2]


def test_a_familys_own_presets_come_first_and_then_the_general_ones(catalogue: Catalogue) -> None:
    names = [name for name, _ in presets_that_suit(catalogue, ("es-dllm/", "vanilla"))]
    own = [name for name in catalogue.names("preset") if name.startswith("es-dllm/")]
    assert own
    assert names == [*own, "vanilla", "prefix-cache", "dual-cache", "es-dllm"]
    assert [name for name, _ in presets_that_suit(catalogue, ())] == [
        "vanilla",
        "prefix-cache",
        "dual-cache",
        "es-dllm",
    ]
    with pytest.raises(UnavailableError):
        Card.of("tiny-llada", catalogue, device="cuda:9")


def test_a_checkpoint_that_ships_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "tiny-sdar"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "weights ship with a plugin; the tests decode with them" in told
    assert "verified of its family" in told
