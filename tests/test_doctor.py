"""`esdllm doctor`: what it says is what the components say, and its exit code whether a run is possible."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import torch
from helpers import CASES, offers, read_config

from esdllm import Catalogue, Engine, Model, UnavailableError, describe_model, load_model
from esdllm.checkpoints.loading import describe_weights
from esdllm.cli import main
from esdllm.config import ComponentConfig
from esdllm.machine import Device, Fit, Machine
from esdllm.measure.doctor import attention_backends, fits, packages
from esdllm.measure.forecast import Forecast
from esdllm.plan import Layout
from esdllm.planning.schedule import Planner
from esdllm.plugins.auto import choose_attention
from esdllm.runtime.components import Components
from esdllm.runtime.footprint import working_bytes
from esdllm.views import Memory

Doctor = Callable[..., tuple[int, str, str]]


@attrs.frozen
class Needy:
    """An attention backend with an option that must be given."""

    size: int


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Runs the command and returns its exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*words: str) -> tuple[int, str, str]:
        code = main(["doctor", "--device", "cpu", *words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_a_shipped_model_is_served(doctor: Doctor) -> None:
    code, told, _ = doctor("--dtype", "float32")
    assert code == 0
    for word in ("Machine", "cpu", "Optional packages", "Attention backends", "sdpa *", "Memory", "dense *"):
        assert word in told
    assert doctor()[0] == 0


def test_every_attention_backend_is_listed_with_all_its_reasons(doctor: Doctor, catalogue: Catalogue) -> None:
    found = json.loads(doctor("--json", "-m", str(CASES / "dream-0"))[1])
    spec = describe_model(CASES / "dream-0", catalogue)
    for one in found["attention"]:
        backend = catalogue.build("attention", ComponentConfig(one["name"]))
        assert one["problems"] == backend.problems(spec, torch.device("cpu"), torch.float32)
    assert [one["name"] for one in found["attention"]] == catalogue.names("attention")


def test_every_store_is_listed_with_what_it_predicts(doctor: Doctor, catalogue: Catalogue) -> None:
    found = json.loads(doctor("--json", "-m", str(CASES / "llada-0"), "--length", "300", "--batch", "3")[1])
    assert [one["store"] for one in found["memory"]] == catalogue.names("cache")
    components = Components.resolve(catalogue.configure("es-dllm"), catalogue)
    weights = describe_weights(CASES / "llada-0", catalogue=catalogue)
    cpu = torch.device("cpu")
    expected = fits(catalogue, components, weights.spec, 3, 300, cpu, weights.dtype, weights.bytes)
    assert [one["cache"] for one in found["memory"]] == [attrs.asdict(fit.cache) for fit in expected]
    assert {fit.weights for fit in expected} == {weights.bytes}


def test_the_shape_that_is_predicted_is_the_one_that_a_run_allocates(llada: Model, catalogue: Catalogue) -> None:
    config = catalogue.configure("es-dllm", settings={"gen_length": 32, "block_length": 16})
    engine = Engine.build(llada, config, catalogue)
    engine.generate(torch.randint(0, 250, (2, 10)))
    shape = engine.cache_shape
    assert shape is not None
    predicted = fits(catalogue, engine.components, llada.spec, 2, 42, torch.device("cpu"), torch.float32, 0)
    dense = catalogue.build("cache", ComponentConfig("dense"))
    assert next(fit.cache for fit in predicted if fit.store == "dense") == dense.memory(shape)


class Noting(Engine):
    """Keeps the canvas that its last run planned for."""

    canvas: Layout

    def planner(self, canvas: Layout, early_stop: bool = False) -> Planner:
        self.canvas = canvas
        return super().planner(canvas, early_stop)


@pytest.mark.parametrize("blocks", ["fixed", "sliding", "own"])
@pytest.mark.parametrize("reach", [0, 5, 40])
@pytest.mark.parametrize("prompt", [1, 4, 60])
@pytest.mark.parametrize("shifted", [False, True])
def test_the_canvas_that_is_predicted_is_the_one_that_a_run_has(
    llada: Model, dream: Model, catalogue: Catalogue, blocks: str, reach: int, prompt: int, shifted: bool
) -> None:
    model, reaching = dream if shifted else llada, {} if blocks == "fixed" else {"reach": reach}
    chosen, lengths = {"name": blocks, **reaching}, {"gen_length": 6, "block_length": 3}
    config = catalogue.configure("dual-cache", settings={**lengths, "blocks": chosen, "refresh": "periodic"})
    engine = cast(Noting, Noting.build(model, config, catalogue))
    engine.generate(torch.randint(0, 250, (2, prompt)))
    shape, cpu = engine.cache_shape, torch.device("cpu")
    assert shape is not None
    room = 0 if blocks == "fixed" else max(0, reach - (prompt - model.spec.logit_shift))
    assert shape.length == room + prompt + 6
    assert engine.components.layout(prompt, model.spec, 2) == engine.canvas
    assert Forecast.of(engine.components, model.spec, prompt, 2).canvas == shape.length
    predicted = fits(catalogue, engine.components, model.spec, 2, prompt + 6, cpu, torch.float32, 0)
    dense = catalogue.build("cache", ComponentConfig("dense"))
    found = next(fit for fit in predicted if fit.store == "dense")
    assert found.cache == dense.memory(shape)
    assert found.work == working_bytes(model.spec, 2, shape.length, 3, torch.float32)


def test_a_store_that_cannot_serve_the_configuration_says_why(doctor: Doctor) -> None:
    found = json.loads(doctor("--json")[1])
    none = next(one for one in found["memory"] if one["store"] == "none")
    assert "early skipping reads keys that the cache store does not hold" in none["problems"][0]
    assert not none["fits"]


def test_a_model_too_large_for_the_memory_exits_with_1(doctor: Doctor, tmp_path: Path) -> None:
    config = {**read_config("llada-0"), "d_model": 65536, "mlp_hidden_size": 262144, "n_heads": 64, "n_kv_heads": 64}
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_layers": 100}))
    code, told, _ = doctor("-m", str(tmp_path), "--gen-length", "64", "--block-length", "64", "--length", "128")
    assert code == 1
    assert re.search(r"(?m)^   dense \*.* no *$", told)
    assert "would not fit in the memory that is free" in told


def test_an_attention_backend_that_cannot_serve_exits_with_1(doctor: Doctor) -> None:
    assert doctor("-s", "attention=xformers")[0] == 1
    assert doctor("-s", "attention=eager")[0] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_auto_is_told_as_the_backend_that_it_chooses(doctor: Doctor, catalogue: Catalogue, dtype: str) -> None:
    code, told, _ = doctor("-s", "attention=auto", "--json", "--dtype", dtype)
    spec = describe_model("tiny-llada", catalogue)
    chosen = choose_attention(catalogue, spec, torch.device("cpu"), getattr(torch, dtype)).name
    assert (code, json.loads(told)["chosen"]["attention"]) == (0, chosen)
    assert dtype == "bfloat16" or chosen == "sdpa"


def test_the_configuration_s_own_store_is_looked_at_as_it_is_set(doctor: Doctor, tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    code, told, _ = doctor("-s", "cache.name=disk", "-s", f"cache.folder={missing}", "--json")
    disk = next(one for one in json.loads(told)["memory"] if one["store"] == "disk")
    assert code == 1
    assert disk["problems"] == [f"there is no folder {missing}; make it, or name another as cache.folder"]


def test_a_backend_without_defaults_is_listed_with_what_it_needs(catalogue: Catalogue) -> None:
    known = Catalogue.load({"mine": offers("esdllm_attention_backends", {"needy": Needy})})
    components = Components.resolve(known.configure("es-dllm"), known)
    spec = describe_model(CASES / "dream-0", known)
    found = attention_backends(known, components, spec, torch.device("cpu"), torch.float32)
    assert "'size'" in next(one.problems[0] for one in found if one.name == "needy")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--length", "200"), "a canvas of 200 has no room for a prompt before gen_length = 256"),
        (("--quantize", "int3"), "int3"),
        (("-m", "tiny-lada"), "tiny-llada"),
        (("--dtype", "float8"), "the dtype 'float8' is not available"),
    ],
)
def test_what_cannot_be_told_is_an_error_in_one_line(doctor: Doctor, words: tuple[str, ...], said: str) -> None:
    code, told, errors = doctor(*words)
    assert (code, told) == (2, "")
    assert said in errors
    assert errors.count("\n") == 1


def test_a_quantisation_that_the_dtype_refuses_is_told_as_loading_tells_it(
    doctor: Doctor, catalogue: Catalogue
) -> None:
    code, told, _ = doctor("--quantize", "int4-weight-only", "--dtype", "float32")
    assert code == 1
    assert "its kernel computes in bfloat16, not in float32" in " ".join(told.split())
    found = json.loads(doctor("--json", "--quantize", "int4-weight-only", "--dtype", "float32")[1])
    assert found["healthy"] is False
    assert found["weights"]["quantize"] == "int4-weight-only"
    with pytest.raises(UnavailableError) as error:
        load_model("tiny-llada", "cpu", "float32", quantize="int4-weight-only", catalogue=catalogue)
    assert str(error.value).endswith("cannot serve here: " + "; ".join(found["weights"]["problems"]))
    assert doctor("--quantize", "int4-weight-only", "--dtype", "bfloat16")[0] == 0


def test_quantised_weights_are_predicted_smaller(catalogue: Catalogue) -> None:
    full, small = (describe_weights("tiny-llada", "float32", quantize, catalogue).bytes for quantize in (None, "int8"))
    assert small < 0.5 * full


def test_what_fits_is_what_is_free() -> None:
    fit = Fit("any", (), Memory(device=10, host=7), weights=20, work=5)
    cpu, gpu = Device("cpu", "", 100, 50), Device("cuda:0", "", 100, 34)
    assert (fit.device(), fit.host()) == (35, 7)
    assert not fit.fits(gpu, cpu)
    assert fit.fits(attrs.evolve(gpu, free=35), cpu)
    assert not fit.fits(attrs.evolve(gpu, free=35), attrs.evolve(cpu, free=6))
    assert fit.fits(cpu, attrs.evolve(cpu, free=42))
    assert not fit.fits(cpu, attrs.evolve(cpu, free=41))
    assert not attrs.evolve(fit, problems=("no",)).fits(attrs.evolve(gpu, free=99), cpu)


def test_the_machine_is_this_one() -> None:
    here = Machine.here()
    assert here.devices[0].name == "cpu"
    assert 0 < here.devices[0].free <= here.devices[0].memory
    assert here.device(torch.device("cpu")) is here.devices[0]
    assert {package.name for package in packages()} >= {"matplotlib", "xformers"}


def test_a_backend_without_problems_serves(catalogue: Catalogue) -> None:
    spec: Any = describe_model(CASES / "dream-0", catalogue)
    components, cpu = Components.resolve(catalogue.configure("es-dllm"), catalogue), torch.device("cpu")
    found = {one.name: one.problems for one in attention_backends(catalogue, components, spec, cpu, torch.float32)}
    assert found["eager"] == found["sdpa"] == ()
    assert found["xformers"]


def test_the_table_of_stores_keeps_its_shape_at_80_columns(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for words in ((), ("--batch", "100"), ("--length", "1024", "--batch", "7")):
        _, told, _ = doctor(*words)
        table = told[told.index("   cache store") :].splitlines()
        assert max(map(len, table)) <= 80
        assert "…" not in told
        rows = [line for line in table if re.match(r"   (dense|disk|int8|none|offloaded|sparse)( \*)? ", line)]
        assert len(rows) == 6
        assert "none: early skipping reads keys that the cache store does not hold" in " ".join(told.split())
