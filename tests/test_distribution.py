"""What users install: the wheel, beside the example plugin, in a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution, distributions, packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from esdllm.parsing import parse_toml

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "plugins" / "esdllm-example-recency"
PACKAGES = ("esdllm", "esdllm_policies", "esdllm_backends", "esdllm_models")
PYTEST = "esdllm_pytest.py"

# asked of the metadata: importing pip makes setuptools give up its distutils, which torch.compile then misses
HAS_PIP = any(distributions(name="pip"))
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not HAS_PIP, reason="a wheel is built with pip")]


# with what is installed: an environment of its own for every build takes as long as all that is asked of what is built
BUILD = ("--quiet", "--no-deps", "--no-build-isolation")


def _python(*arguments: str, cwd: Path = ROOT, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _python("-m", "pip", "wheel", *BUILD, "--wheel-dir", str(folder), str(ROOT))
    (found,) = folder.glob("esdllm-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the example plugin, to go before everything else on the path."""
    folder = tmp_path_factory.mktemp("installed")
    _python("-m", "pip", "install", *BUILD, "--target", str(folder), str(wheel), str(EXAMPLE))
    return folder


def test_the_wheel_holds_the_four_packages_their_types_and_the_tiny_checkpoints(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {*PACKAGES, PYTEST}
    templates = (ROOT / "esdllm" / "cli" / "templates").glob("*.template")
    assert {f"esdllm/cli/templates/{path.name}" for path in templates} <= names
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    both = ("README.md", "config.json", "model.safetensors", "tokenizer_config.json")
    tiny = {"llada": (*both, "tokenizer.json"), "dream": (*both, "vocab.json", "merges.txt")}
    assert {f"esdllm_models/tiny/{family}/{name}" for family in tiny for name in tiny[family]} <= names
    assert "esdllm_models/tiny/problems.jsonl" in names


def test_the_wheel_leaves_out_no_module(wheel: Path) -> None:
    rooms = [ROOT / "esdllm", ROOT / "policies", ROOT / "backends", ROOT / "models"]
    modules = {
        str(path.relative_to(room.parent if room.name == "esdllm" else room))
        for room in rooms
        for path in room.rglob("*.py")
    }
    assert modules | {PYTEST} == {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")}


def test_the_installed_wheel_decodes_through_the_installed_plugin(installed: Path) -> None:
    script = (
        "import esdllm, sys; from esdllm.cli import main;"
        f"assert esdllm.__file__.startswith({str(installed)!r});"
        "sys.exit(main(['generate', 'Who are you?', '--set', 'importance.name=recency', '--gen-length', '32']))"
    )
    assert _python("-c", script, cwd=installed, PYTHONPATH=str(installed)).strip()


def test_the_example_plugin_s_own_tests_pass(installed: Path, tmp_path: Path) -> None:
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path))
    _python("-m", "pytest", *options, str(EXAMPLE / "test_recency.py"), cwd=installed, PYTHONPATH=str(installed))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    _python("-m", "hatchling", "build", "-t", "sdist", "-d", str(folder))
    (found,) = folder.glob("esdllm-*.tar.gz")
    return found


@pytest.mark.skipif(not any(distributions(name="twine")), reason="twine is installed with the extra dev")
def test_an_index_would_take_the_release(wheel: Path, sdist: Path) -> None:
    assert _python("-m", "twine", "check", "--strict", str(wheel), str(sdist)).count("PASSED") == 2


def _needed(name: str = "esdllm") -> set[str]:
    """Return the distributions that a plain install of one brings, itself among them."""
    found, waiting = set(), [name]
    while waiting:
        one = canonicalize_name(waiting.pop())
        if one in found or not any(distributions(name=one)):
            continue
        found.add(one)
        needs = map(Requirement, distribution(one).requires or ())
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


BARE = """
import sys
class Bare:
    def find_spec(self, name, *_):
        if name in {missing!r}: raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Bare())
from esdllm.cli import main
for words in (["--help"], ["plugins"], ["explain"], ["generate", "Who are you?", "--preset", "es-dllm-parallel"]):
    assert main(words) == 0, words
"""


def test_what_the_wheel_names_is_all_that_it_needs(installed: Path) -> None:
    needed = _needed()
    missing = {
        module
        for module, owners in packages_distributions().items()
        if not needed & set(map(canonicalize_name, owners)) and not module.startswith(("esdllm", "_esdllm"))
    } - {*sys.stdlib_module_names, "pkg_resources", "setuptools"}
    assert {"pytest", "typer"} & missing == {"pytest"}
    assert _python("-c", BARE.format(missing=missing), cwd=installed, PYTHONPATH=str(installed)).strip()


def test_the_sdist_holds_what_its_tests_need(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CITATION.cff", "SECURITY.md", "LICENSE", "README.md", "CHANGELOG.md", "constraints.txt"} <= names
    tests = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("*.py")}
    assert tests <= names


def test_the_citation_names_the_paper_and_this_version() -> None:
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = parse_toml((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (told["title"], told["version"], told["license"]) == (
        project["name"],
        project["version"],
        project["license"],
    )
    paper = told["preferred-citation"]
    assert paper["url"] == project["urls"]["Paper"] == "https://arxiv.org/abs/2603.10088"
    assert {"title", "authors", "year", "type"} <= set(paper)


def test_the_sdist_builds_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / sdist.name.removesuffix(".tar.gz")
    _python("-m", "pip", "wheel", *BUILD, "--wheel-dir", str(tmp_path), str(source))
    (second,) = tmp_path.glob("esdllm-*.whl")
    assert sorted(zipfile.ZipFile(second).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())
