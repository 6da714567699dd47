"""The measure of the house: no file of a package is long, no function anywhere, and no two classes share a name."""

from __future__ import annotations

import ast
import importlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("esdllm", "policies", "backends", "models", "tools", "benchmarks", "examples", "docs")
LINES = 300
"""of a file, the first number that is too many"""
BODY = 50
"""of a function, from `def` to its last line, the first number that is too many"""


def _files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from (path for path in sorted((ROOT / folder).rglob("*.py")) if "__pycache__" not in path.parts)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _long(source: str) -> list[tuple[str, int]]:
    """Return the functions that are too long, nested ones too, and their lines."""
    functions = (
        node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    sizes = [(node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in functions]
    return [(name, size) for name, size in sizes if size >= BODY]


def _imported(source: str) -> Iterator[tuple[str, str]]:
    """Yield the modules of esdllm that a source imports from, and what."""
    for node in ast.walk(ast.parse(source)):
        module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
        if module == "esdllm" or module.startswith("esdllm."):
            yield from ((module, name.name) for name in node.names)


def _is_there(module: str, name: str) -> bool:
    """Return whether a module has a name, or is a package that has a module of that name; of an extra that is not here, true."""
    try:
        return hasattr(importlib.import_module(module), name) or bool(importlib.import_module(f"{module}.{name}"))
    except ModuleNotFoundError as error:
        return str(error.name).split(".")[0] != "esdllm"
    except ImportError:
        return False


@pytest.mark.parametrize("folder", ["benchmarks", "tools", "docs", "examples"])
def test_what_is_run_by_hand_imports_what_there_is(folder: str) -> None:
    missing = [
        (_name(path), module, name)
        for path in _files(folder)
        for module, name in _imported(path.read_text(encoding="utf-8"))
        if not _is_there(module, name)
    ]
    assert missing == []


def test_an_import_of_what_is_gone_is_seen() -> None:
    assert list(_imported("from esdllm.cli import gone\nfrom torch import nn\nfrom esdllm import Engine")) == [
        ("esdllm.cli", "gone"),
        ("esdllm", "Engine"),
    ]
    assert [
        _is_there(*one) for one in (("esdllm.cli", "gone"), ("esdllm", "Engine"), ("esdllm.runtime", "canvas"))
    ] == [
        False,
        True,
        True,
    ]


def test_every_package_is_looked_at() -> None:
    assert not [folder for folder in PACKAGES if not any(_files(folder))]


@pytest.mark.parametrize("folder", [*PACKAGES, "."])
def test_a_file_has_fewer_lines_than_the_measure(folder: str) -> None:
    files = _files(folder) if folder != "." else ROOT.glob("*.py")
    sizes = {_name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert not {name: size for name, size in sizes.items() if size >= LINES}


@pytest.mark.parametrize("folder", [*PACKAGES, "tests"])
def test_a_function_has_fewer_lines_than_the_measure(folder: str) -> None:
    long = {_name(path): _long(path.read_text(encoding="utf-8")) for path in _files(folder)}
    assert not {name: found for name, found in long.items() if found}


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n" + "    x = 1\n" * (BODY - 1),
        "async def f():\n" + "    x = 1\n" * (BODY - 1),
        "def f(\n" + "".join(f"    a{i},\n" for i in range(BODY)) + "):\n    pass\n",
        "class C:\n    def f(self):\n" + "        x = 1\n" * (BODY - 1),
        "def g():\n    def f():\n" + "        x = 1\n" * (BODY - 1),
        "if True:\n    def f():\n" + "        x = 1\n" * (BODY - 1),
        'def f():\n    """A\n' + "    text\n" * (BODY - 3) + '    """\n',
    ],
)
def test_a_function_of_the_measure_is_found_wherever_it_stands(source: str) -> None:
    assert ("f", BODY) in _long(source) or _long(source)[0][1] > BODY
    assert not _long("def f():\n" + "    x = 1\n" * (BODY - 2))


def _classes(source: str) -> list[str]:
    """Return the names of the classes of a source, nested ones too."""
    return [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]


def _shared(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the names that several classes have, and where those are."""
    found = defaultdict(list)
    for place, source in sources.items():
        for name in _classes(source):
            found[name].append(place)
    return {name: places for name, places in found.items() if len(places) > 1}


@pytest.mark.slow
def test_no_two_classes_of_the_four_packages_share_a_name() -> None:
    sources = {_name(path): path.read_text(encoding="utf-8") for path in _files(*PACKAGES[:4])}
    shared = _shared(sources)
    assert not shared, (
        "one word for one thing; keep the name where docs/glossary.md has it, and rename the others: "
        + ("; ".join(f"{name} in {', '.join(places)}" for name, places in sorted(shared.items())))
    )


def test_a_name_that_two_classes_share_is_found_wherever_they_stand() -> None:
    nested = "def f():\n    class Report:\n        pass"
    assert _shared({"a": "class Report: pass", "b": nested, "c": "class Other: pass"}) == {"Report": ["a", "b"]}
    assert _shared({"a": "class Report:\n    class Report: pass"}) == {"Report": ["a", "a"]}
    assert not _shared({"a": "class Report: pass", "b": "Report = 1", "c": "def Report(): pass"})
