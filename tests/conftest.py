"""Fixtures that several test files use."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sampling
from helpers import CASES, read_config, write_small
from hypothesis import settings
from projects import FILE, Run
from runs import Build

from esdllm import Catalogue, Model, load_model
from esdllm.checkpoints import dtypes
from esdllm.checkpoints.loading import random_model, shipped_checkpoints
from esdllm.cli import main
from esdllm_models.linear import choosing
from esdllm_models.linear.timing import Seconds

sampling.register()
FEW = 3
"""how many sets of parameters of a test the quick run takes"""
MEASURED = 64
"""how many of them coverage is measured of"""
SLOW = 1.0
"""seconds of processor time from which on the quick run asks for the mark `slow`"""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the quick run."""
    parser.addoption("--quick", action="store_true", help="a part of every test that is not slow, in about a minute")


def pytest_configure(config: pytest.Config) -> None:
    """In the quick run, draw few examples."""
    if config.getoption("--quick"):
        settings.load_profile("quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Measure coverage of some sets of parameters of each test, since measuring slows by half; the quick run takes a few.

    It is measured of nothing that is slow, but where that `covers`, and of no run on the meta device, whose Python is
    torch's: what such a run covers, the same on the CPU does. The quick run leaves out what is slow or `full` too.
    """
    tests: dict[str, list[pytest.Item]] = {}
    for item in items:
        if not any(item.get_closest_marker(name) for name in ("slow", "full")):
            tests.setdefault(item.nodeid.split("[")[0], []).append(item)
    measured = _apart([same for same in tests.values() if "shape_only" not in same[0].fixturenames], MEASURED)
    for item in items:
        if item not in measured and not item.get_closest_marker("covers"):
            item.add_marker("no_cover")
    if config.getoption("--quick"):
        few = _apart(tests.values(), FEW)
        config.hook.pytest_deselected(items=[item for item in items if item not in few])
        items[:] = [item for item in items if item in few]


def _apart(tests: Iterable[list[pytest.Item]], most: int) -> set[pytest.Item]:
    """Return at most so many sets of parameters of each test, which lie far apart."""
    return {one for same in tests for one in same[:: -(-len(same) // most)]}


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what is imported, which stays, and look seldom at what tests make.

    Each of its rounds would look at all of it; where a step is traced, which makes many objects, they took a fifteenth of
    the time.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Note what processor time a test takes, with the processes that it waits for."""
    before = sum(os.times()[:4])
    yield
    item.user_properties.append(("processor", sum(os.times()[:4]) - before))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """In the quick run, name the tests that should be marked as slow."""
    if not config.getoption("--quick"):
        return
    for report in terminalreporter.getreports("passed"):
        if (took := dict(report.user_properties).get("processor", 0.0)) > SLOW:
            terminalreporter.write_line(f"mark as slow: {report.nodeid} took {took:.1f} s of processor time")


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    """The installed plugins' catalogue."""
    return Catalogue.load()


@pytest.fixture(scope="session")
def llada(catalogue: Catalogue) -> Model:
    """A random LLaDA of 256 tokens."""
    return load_model(CASES / "llada-0", "cpu", catalogue=catalogue)


@pytest.fixture(scope="session")
def dream(catalogue: Catalogue) -> Model:
    """A random Dream of 256 tokens."""
    return load_model(CASES / "dream-0", "cpu", catalogue=catalogue)


@pytest.fixture(scope="session")
def models(llada: Model, dream: Model, catalogue: Catalogue) -> dict[str, Model]:
    """Both, by the names of their folders, and both with two layers."""
    configs = {"llada-shallow": ("llada-0", "n_layers"), "dream-shallow": ("dream-0", "num_hidden_layers")}
    shallow = {
        name: random_model({**read_config(whole), layers: 2}, "cpu", catalogue=catalogue)
        for name, (whole, layers) in configs.items()
    }
    return {"llada-0": llada, "dream-0": dream, **shallow}


@pytest.fixture(scope="session")
def shape_only(catalogue: Catalogue) -> dict[str, Model]:
    """Models of two layers on the meta device, where any read raises, by the names of the whole ones' folders."""
    layers = {"llada-0": "n_layers", "dream-0": "num_hidden_layers"}
    return {
        name: random_model({**read_config(name), key: 2}, "meta", catalogue=catalogue) for name, key in layers.items()
    }


@pytest.fixture(scope="session")
def shallow(models: dict[str, Model]) -> Model:
    """A random LLaDA of two layers, between which a step skips: quick to compile."""
    return models["llada-shallow"]


@pytest.fixture(scope="session")
def small(catalogue: Catalogue, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of two random layers with the shipped ones' tokenizers, by the shipped ones' names."""
    folder = tmp_path_factory.mktemp("small")
    return {name: write_small(folder / name, shipped) for name, shipped in shipped_checkpoints(catalogue).items()}


@pytest.fixture(scope="session")
def build(models: dict[str, Model], catalogue: Catalogue) -> Build:
    """Make engines for short runs."""
    return Build(models, catalogue)


@pytest.fixture(autouse=True)
def fast_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command hints that bfloat16 is slow here: what is printed is the same on every processor."""
    monkeypatch.setattr(dtypes, "multiplies_bfloat16", lambda: True)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that esdllm reads is set, whatever is outside."""
    for name in os.environ:
        if name.startswith("ESDLLM_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def nothing_measured(
    clean_environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No test's result goes by which kernel is fastest, and no test finds what another kept."""
    monkeypatch.setenv("ESDLLM_HOME", str(tmp_path_factory.getbasetemp() / "home"))
    monkeypatch.setattr(choosing, "measured", lambda matrices, names, dtype: dict.fromkeys(names, Seconds(1.0, 1.0)))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, and the working folder in it, which git ends."""
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def project(folder: Path) -> Path:
    """The same with an esdllm.toml."""
    (folder / "esdllm.toml").write_text(FILE, encoding="utf-8")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command; give its exit code, standard output and standard error."""

    def command(*words: str) -> tuple[int, str, str]:
        code = main(words)
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return command
