"""`esdllm new-plugin`: what it writes passes its own tests, ruff and strict mypy, whatever the kind."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from esdllm import INTERFACE, Catalogue
from esdllm.cli import main
from esdllm.cli.new_plugin import write_plugin
from esdllm.cli.plugin_kinds import KINDS
from esdllm.errors import ConfigError, InputError
from esdllm.plugins.catalogue import KINDS as SECTIONS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
LONG = "a-name-of-thirty-two-characters"


def _run(*arguments: str, cwd: Path, **environment: str) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _project(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A package of every kind."""
    room = tmp_path_factory.mktemp("plugins")
    return {kind: write_plugin(f"made-{kind}", kind, room) for kind in KINDS}


@pytest.fixture(scope="module")
def site(written: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them as pip leaves them in site-packages: modules, and dist-info folders with their entry points."""
    folder = tmp_path_factory.mktemp("site")
    for package in written.values():
        project = _project(package)["project"]
        for module in package.glob("esdllm_*.py"):
            (folder / module.name).write_text(module.read_text(encoding="utf-8"), encoding="utf-8")
        info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
        )
        points = [f"{name} = {module}" for name, module in project["entry-points"]["esdllm"].items()]
        (info / "entry_points.txt").write_text("\n".join(["[esdllm]", *points, ""]), encoding="utf-8")
    return folder


def test_every_kind_that_can_be_written_is_one_of_a_catalogue_or_a_command() -> None:
    assert {kind.section for kind in KINDS.values()} == {*SECTIONS, "command"} - {"suite"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_package_is_a_module_its_tests_a_readme_and_an_entry_point(kind: str, written: dict[str, Path]) -> None:
    folder = written[kind]
    module = f"esdllm_made_{kind}"
    names = {"pyproject.toml", "README.md", f"{module}.py", f"test_{module}.py"}
    assert {path.name for path in folder.iterdir()} == names
    assert _project(folder)["project"]["entry-points"]["esdllm"] == {f"esdllm-made-{kind}": module}
    assert f"\nesdllm_interface = {INTERFACE}\n" in (folder / f"{module}.py").read_text(encoding="utf-8")
    assert not [path.name for path in folder.iterdir() if "$" in path.read_text(encoding="utf-8")]


@pytest.mark.slow
def test_what_is_written_passes_its_own_tests_for_every_kind(site: Path, written: dict[str, Path]) -> None:
    tests = [str(package / f"test_esdllm_made_{kind}.py") for kind, package in written.items()]
    options = ("-p", "no:cacheprovider", "--rootdir", str(site), "-c", os.devnull, "--import-mode", "importlib")
    out = _run("-m", "pytest", "-q", *options, *tests, cwd=site, PYTHONPATH=str(site))
    assert f"{2 * len(KINDS)} passed" in out


@pytest.mark.parametrize("name", ["near", LONG])
def test_what_is_written_passes_ruff_whatever_the_kind_and_however_long_its_name(name: str, tmp_path: Path) -> None:
    for kind in KINDS:
        write_plugin(name, kind, tmp_path / kind)
    _run("-m", "ruff", "check", "--no-cache", ".", cwd=tmp_path)
    _run("-m", "ruff", "format", "--no-cache", "--check", ".", cwd=tmp_path)


@pytest.mark.slow
def test_what_is_written_passes_strict_mypy_for_every_kind(site: Path, written: dict[str, Path]) -> None:
    """With the options by which mypy finds again what it knows of torch and esdllm since it checked this project."""
    modules = [str(path) for package in written.values() for path in package.glob("*.py")]
    config = str(written["scorer"] / "pyproject.toml")
    shared = (
        "--python-version",
        "3.10",
        "--untyped-calls-exclude",
        "transformers",
        "--cache-dir",
        ROOT / ".mypy_cache",
    )
    _run("-m", "mypy", "--config-file", config, *map(str, shared), *modules, cwd=site, MYPYPATH=str(site))


@pytest.mark.slow
def test_a_written_package_can_be_built_into_a_wheel(written: dict[str, Path], tmp_path: Path) -> None:
    import zipfile

    _run("-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path), cwd=written["skip"])
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if ".dist-info" not in name] == ["esdllm_made_skip.py"]
    assert any(name.endswith("entry_points.txt") for name in names)


def test_the_command_prints_the_folder_and_says_what_is_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["new-plugin", "esdllm-nearby", "--kind", "scorer", "--to", str(tmp_path / "new")]) == 0
    out, err = capsys.readouterr()
    assert Path(out.strip()) == tmp_path / "new" / "esdllm-nearby"
    assert (Path(out.strip()) / "esdllm_nearby.py").is_file()
    assert err.startswith("next: pip install -e ")


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "esdllm-near").mkdir()
    with pytest.raises(
        InputError, match="esdllm-near exists already; choose another name, or another folder with --to"
    ):
        write_plugin("near", "skip", tmp_path)
    assert list((tmp_path / "esdllm-near").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("Near By", "near-by"),
        ("my_scorer", "my-scorer"),
        ("3rd", "rd"),
        ("a--b", "a-b"),
        ("", "nearby"),
        ("-", "nearby"),
        ("x" * 33, "x" * 32),
    ],
)
def test_a_name_that_cannot_be_one_is_refused_with_one_that_can(name: str, like: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"cannot be a name; give lower-case .*, such as {like}$"):
        write_plugin(name, "skip", tmp_path)
    assert not list(tmp_path.iterdir())
    write_plugin(like, "skip", tmp_path)


def test_a_name_that_is_taken_is_refused_with_who_has_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"skip 'by-depth' is offered already, by plugin 'esdllm-policies' of esdllm"):
        write_plugin("by-depth", "skip", tmp_path)
    with pytest.raises(ConfigError, match="there is a module 'esdllm_policies' already"):
        write_plugin("policies", "skip", tmp_path)
    assert "by-depth" not in Catalogue.load().names("refresh")
    write_plugin("by-depth", "refresh", tmp_path)


@pytest.mark.parametrize(
    ("name", "who"), [("generate", "esdllm itself"), ("bench", "esdllm itself"), ("tune", "plugin 'esdllm-extras' of")]
)
def test_a_command_s_name_that_is_taken_is_refused_with_who_has_it(name: str, who: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"command '{name}' is offered already, by {who}"):
        write_plugin(name, "command", tmp_path)
    assert not list(tmp_path.iterdir())
    write_plugin(name, "skip", tmp_path)


@pytest.mark.parametrize("name", ["print", "import", "class", "command", "count-command", "typer", "load-model"])
def test_a_command_may_be_called_by_a_word_of_python(name: str, tmp_path: Path) -> None:
    folder = write_plugin(name, "command", tmp_path)
    _run("-m", "ruff", "check", "--no-cache", ".", cwd=folder)
    (module,) = folder.glob("esdllm_*.py")
    assert list(runpy.run_path(str(module))["esdllm_commands"]()) == [name]


def test_an_unknown_kind_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown kind 'scorers'; did you mean 'scorer'\? known: attention, blocks"):
        write_plugin("near", "scorers", tmp_path)
