"""The examples of the documentation: where they stand, what they need, what is shown beneath them, and how they are run.

An example is a fence of `bash` or `python`. What it prints is shown in a fence of `output` right beneath it, and compared, but
for what is marked there as free:

    …     within a line: any text; alone on a line: any lines
    ≈1.2  any number: a time, a speed, a number of bytes

Two or more spaces within a line are a column's edge, and a rule is a rule, however wide. A fence with a title is a file, which
the examples after it find; a fence of `py` is a signature or a sketch.
"""

from __future__ import annotations

import difflib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from esdllm.cli import main

ROOT = Path(__file__).parent.parent
PAGES = (
    [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    + sorted(ROOT.glob("docs/**/*.md"))
    + sorted(ROOT.glob("examples/**/*.md"))
    + sorted(ROOT.glob("models/**/*.md"))
    + sorted(ROOT.glob("tools/**/*.md"))
)
EXTRAS = {
    "plot": ("matplotlib",),
    "tune": ("optuna", "matplotlib"),
    "parquet": ("pyarrow",),
    "eval": ("lm_eval", "pyarrow"),
    "testing": ("hypothesis",),
    "serve": ("prometheus_client", "starlette", "uvicorn"),
}
"""what each extra that an example may need brings"""

_FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
_NUMBER = r"-?\d(?:[\d.,]*\d)?(?:e[+-]?\d+)?"
_FREE = re.compile(rf"…|≈{_NUMBER}|(?<=\S) {{2,}}(?=\S)|─{{3,}}")
WIDTH = "100"
"""columns of the terminal that the pages show"""


class Fence(NamedTuple):
    """A code block."""

    page: Path
    line: int
    language: str
    title: str
    code: str
    beneath: bool
    """whether nothing stands between the fence before and this one"""
    extras: frozenset[str]
    """the extras that the page's lead and the section before it tell the reader to install"""

    @property
    def name(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


class Example(NamedTuple):
    """A block that is run, and what is shown beneath it."""

    fence: Fence
    shown: str | None

    @property
    def commands(self) -> list[str]:
        return commands_of(self.fence.code)


def name_of(page: Path) -> str:
    """Return a page's path in the repository."""
    return str(page.relative_to(ROOT))


def fences(page: Path, text: str | None = None) -> list[Fence]:
    """Return the code blocks of a page, snippets written out; `text` stands for the page's own."""
    text = page.read_text(encoding="utf-8") if text is None else text
    written = re.sub(r'^--8<-- "(.+)"$', lambda m: (ROOT / m[1]).read_text(encoding="utf-8"), text, flags=re.MULTILINE)
    found, end = [], 0
    for match in _FENCE.finditer(written):
        language, title, code = match.groups()
        line = written.count("\n", 0, match.start()) + 1
        beneath = end > 0 and not written[end : match.start()].strip()
        found.append(Fence(page, line, language, title or "", code, beneath, _extras(written[: match.start()])))
        end = match.end()
    return found


def _extras(before: str) -> frozenset[str]:
    """Return the extras that the page's lead and the section so far tell the reader to install."""
    sections = re.split(r"^## ", _FENCE.sub(lambda m: m[3], before), flags=re.MULTILINE)
    named = set(re.findall(r"\"(?:esdllm|\.)\[(\w+)\]\"", sections[0] + sections[-1]))
    return frozenset(named & EXTRAS.keys())


def examples(blocks: list[Fence]) -> list[Example]:
    """Return the blocks that are run, each with the output shown beneath it."""
    return [
        Example(block, below.code if below is not None and below.language == "output" and below.beneath else None)
        for block, below in zip_longest(blocks, blocks[1:])
        if block.language in ("bash", "python") and not block.title
    ]


def commands_of(code: str) -> list[str]:
    """Return the commands of a shell block, comments left out; one may go over several lines, as a shell allows."""
    found, open_ = [], ""
    for line in code.splitlines():
        if not open_ and (not line.strip() or line.startswith("#")):
            continue
        open_ = f"{open_}\n{line}" if open_ else line
        if line.endswith("\\"):
            continue
        try:
            shlex.split(open_, comments=True)
        except ValueError:  # a quotation goes on
            continue
        found.append(open_)
        open_ = ""
    assert not open_, f"a quotation has no end: {open_}"
    return found


def difference(shown: str, came: str) -> str:
    """Return what differs between what a page shows and what came out; nothing if all is as shown."""
    mine, theirs = _lines(shown), _lines(came)
    if re.fullmatch(_pattern(mine), "".join(f"{line}\n" for line in theirs), re.DOTALL):
        return ""
    return "\n".join(difflib.unified_diff(mine, theirs, "shown", "came", lineterm="", n=2))


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _pattern(lines: list[str]) -> str:
    """Return the regular expression of what is shown."""
    return "".join(r"(?:[^\n]*\n)*?" if line.strip() == "…" else _line_pattern(line) + "\n" for line in lines)


def _line_pattern(line: str) -> str:
    pattern, end = "", 0
    for free in _FREE.finditer(line):
        pattern += re.escape(line[end : free.start()])
        pattern += {"…": r"[^\n]*?", "≈": _NUMBER, "─": "─{3,}"}.get(free[0][0], " {2,}")
        end = free.end()
    return pattern + re.escape(line[end:])


class Room:
    """A folder in which the examples of a page run in order, as a reader with the named extras alone would run them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder, self._module, self._monkeypatch = folder, ModuleType("page"), monkeypatch
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", WIDTH)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setitem(sys.modules, "page", self._module)

    def write(self, fence: Fence) -> None:
        """Write a titled block."""
        path = self._folder / fence.title
        path.parent.mkdir(exist_ok=True)
        path.write_text(fence.code, encoding="utf-8")

    def run(self, fence: Fence, commands: list[str]) -> str:
        """Return what an example prints, on both streams, in order."""
        printed = io.StringIO()
        with redirect_stdout(printed), redirect_stderr(printed), only_extras(fence.extras):
            if fence.language == "python":
                exec(compile(fence.code, fence.name, "exec", dont_inherit=True), vars(self._module))
            for command in commands:
                code = self._call(command)
                assert code == 0, f"exit code {code}: {command}\n{printed.getvalue()}"
        return printed.getvalue()

    def _call(self, command: str) -> int:
        words = shlex.split(command.replace("\\\n", " "), comments=True)
        with self._monkeypatch.context() as patch:
            while re.fullmatch(r"[A-Z_]+=.*", words[0]):
                patch.setenv(*words.pop(0).split("=", 1))
            target = words[-1] if words[-2:-1] == [">"] else None
            with _into(target):
                return main(words[1 : -2 if target else None])


@contextmanager
def _into(target: str | None) -> Iterator[None]:
    """Send standard output to a file, as `>` does."""
    if target is None:
        yield
        return
    with open(target, "w", encoding="utf-8") as file, redirect_stdout(file):
        yield


@contextmanager
def only_extras(extras: frozenset[str]) -> Iterator[None]:
    """Hide the packages of all extras but these: what asks for one finds it not installed."""
    kept = {package for extra in extras for package in EXTRAS[extra]}
    hidden = {package for packages in EXTRAS.values() for package in packages} - kept
    taken = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in hidden}
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: importing it raises ImportError
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
        sys.modules.update(taken)
