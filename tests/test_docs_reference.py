"""The reference is complete: every public name and every command is on a page, and nothing is there that does not exist."""

from __future__ import annotations

import importlib
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import esdllm
from esdllm import testing
from esdllm.measure import evaluation

yaml = pytest.importorskip("yaml")  # comes with mkdocs

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "docs" / "hooks.md", *sorted((ROOT / "docs" / "reference").glob("*.md"))]


def _directives(page: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what each ::: line of a page shows, and its options."""
    found = re.findall(r"^::: (\S+)\n((?:    .*\n|\n(?=    ))*)", page.read_text() + "\n", re.MULTILINE)
    for name, block in found:
        yield name, (yaml.safe_load(block) or {}).get("options", {})


def _resolve(path: str) -> Any:
    """Return a module, or what a module holds."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def _shown(path: str, options: dict[str, Any]) -> Iterator[str]:
    """Yield the names that a directive documents."""
    found = _resolve(path)
    if not isinstance(found, ModuleType):
        yield path.rpartition(".")[2]
        return
    members = options.get("members", True)
    for name in found.__all__ if members is True else members or []:
        assert hasattr(found, name), f"{path} has no {name}"
        yield name


@pytest.fixture(scope="module")
def shown() -> list[str]:
    return [name for page in PAGES for path, options in _directives(page) for name in _shown(path, options)]


@pytest.mark.parametrize("module", [esdllm, testing, evaluation], ids=lambda module: module.__name__)
def test_every_public_name_is_on_a_reference_page(module: ModuleType, shown: list[str]) -> None:
    assert not sorted({name for name in module.__all__ if not name.startswith("__")} - set(shown))


def test_no_page_shows_a_name_twice() -> None:
    for page in PAGES:
        paths = [path for path, _ in _directives(page)]
        assert len(paths) == len(set(paths)), page.name


@pytest.fixture(scope="module")
def commands() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "commands.py"))


def test_every_command_and_option_is_in_the_reference_of_the_command_line(commands: dict[str, Any]) -> None:
    written, told = commands["reference"](), dict(commands["commands"]())
    assert len(told) >= 10
    for name, command in told.items():
        section = written[written.index(f"## `{name}`\n") :].split("\n## ")[0]
        options = [param for param in command.params if param.param_type_name == "option"]
        assert not [param.name for param in options if any(f"`{opt}`" not in section for opt in param.opts)], name


def test_every_option_says_what_it_is(commands: dict[str, Any]) -> None:
    silent = [
        f"{name} {param.name}" for name, command in commands["commands"]() for param in command.params if not param.help
    ]
    assert not silent


def test_the_command_line_s_page_takes_in_its_reference(commands: dict[str, Any]) -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    written = commands["on_page_markdown"](page)
    assert "<!-- commands -->" in page
    assert "## `esdllm generate`" in written
    assert "<!--" not in written


def test_every_page_is_in_the_navigation() -> None:
    text = re.sub(r"!!\S+", "", (ROOT / "mkdocs.yml").read_text())
    nav = yaml.safe_load(text)["nav"]
    listed = re.findall(r"[\w/-]+\.md", str(nav))
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)
