"""The example packages as users have them: installed by pip, found through their entry points, checked by their own tests."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLUGINS = ROOT / "examples" / "plugins"
REFERENCE = ROOT / "docs" / "reference" / "families.md"
EXAMPLES = sorted(path.parent for path in PLUGINS.glob("*/pyproject.toml"))
OFFERED = {
    "esdllm-example-bfloat16": ("cache", "bfloat16"),
    "esdllm-example-olmo2": ("model", "a2d-olmo2"),
    "esdllm-example-recency": ("importance", "recency"),
}

PUBLIC = {"esdllm", "esdllm.testing", *re.findall(r"^::: (\S+)$", REFERENCE.read_text(encoding="utf-8"), re.MULTILINE)}
"""modules that a plugin may import from: the package, its kit, and what the reference shows to those who add a model family"""

HAS_PIP = any(distributions(name="pip"))  # importing it would make setuptools give up its distutils
needs_pip = pytest.mark.skipif(not HAS_PIP, reason="packages are installed with pip")


def _python(*arguments: str, cwd: Path, **environment: str) -> str:
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all example packages, built by what is installed already."""
    folder = tmp_path_factory.mktemp("installed")
    options = ("--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", str(folder))
    _python("-m", "pip", "install", *options, *map(str, EXAMPLES), cwd=folder)
    return folder


def test_every_example_is_known_here() -> None:
    assert [path.name for path in EXAMPLES] == sorted(OFFERED)


@pytest.mark.slow
@needs_pip
def test_esdllm_plugins_shows_what_the_examples_offer(installed: Path) -> None:
    script = "import sys; from esdllm.cli import main; sys.exit(main(['plugins', '--json']))"
    listed = json.loads(_python("-c", script, cwd=installed, PYTHONPATH=str(installed)))
    assert {one["package"]: (one["kind"], one["name"]) for one in listed if one["package"] in OFFERED} == OFFERED


@pytest.mark.slow
@needs_pip
def test_the_examples_own_tests_pass_where_they_are_installed(installed: Path, tmp_path: Path) -> None:
    options = ("-p", "no:cacheprovider", "--import-mode", "importlib", "--rootdir", str(tmp_path), "-c", os.devnull)
    tests = [str(path) for example in EXAMPLES for path in example.glob("test_*.py")]
    assert len(tests) >= len(EXAMPLES)
    _python("-m", "pytest", *options, *tests, cwd=installed, PYTHONPATH=str(installed))


def _imports(source: Path) -> Iterator[tuple[str, str]]:
    """Yield module and name of everything that a file imports from packages of this distribution."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_an_example_imports_public_names_only(example: Path) -> None:
    own = example.name.replace("-", "_")
    found = {pair for source in example.rglob("*.py") for pair in _imports(source) if pair[0].startswith("esdllm")}
    ours = {(module, name) for module, name in found if module.split(".")[0] != own}
    assert ours
    assert {module for module, _ in ours} <= PUBLIC
    assert not [name for module, name in ours if name and name not in importlib.import_module(module).__all__]
