"""The measure of the house: no file of a package is long, and no function anywhere."""

from __future__ import annotations

import ast
from collections.abc import Iterator
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
