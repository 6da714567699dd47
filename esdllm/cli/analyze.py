"""`esdllm analyze`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import typer
from rich import box
from rich.table import Table

from esdllm.cli.choice import Choice
from esdllm.cli.loading import load_asked
from esdllm.cli.options.analyze import DEFAULT_PRESET, AnalyzeOptions
from esdllm.cli.progress import CountingBar
from esdllm.cli.prompts import read_prompts
from esdllm.cli.shared import check_writable, counted, print_json, stderr, stdout
from esdllm.errors import InputError, known
from esdllm.interfaces import Suite
from esdllm.measure.analysis import Analysis, AnalysisInterrupted, analyze
from esdllm.measure.analysis.plots import draw
from esdllm.measure.analysis.tables import tables
from esdllm.measure.evaluation import load_suite, of_split, taken
from esdllm.measure.plots import require_matplotlib
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.engine import Engine

_KINDS = ("pdf", "png", "svg")
_NUMBERS = "analysis.json"
_TEXTS = ("positions", "kind", "tensor", "layers")


@attrs.frozen(kw_only=True)
class Analyze(AnalyzeOptions):
    """Compares each step with the one before, and prints what changed."""

    def run(self) -> None:
        """Measure, print what was found, and draw it."""
        catalogue, console = Catalogue.load(), stderr()
        problems = load_suite(self.suite, catalogue) if self.suite else None
        texts = self._texts(problems)
        if self.kind not in _KINDS:
            raise InputError(f"--format {self.kind}: {known(self.kind, _KINDS)}")
        if self.out is not None:
            _check_folder(self.out)
        suited = problems.settings if problems and self.config is None else {}
        choice = Choice.of(self, default=DEFAULT_PRESET, suited=suited)
        decode = choice.config(catalogue)
        name, loaded = load_asked(self, catalogue)
        found, code = self._measure(Engine.build(loaded, decode, catalogue), texts)
        told = {"model": name, "preset": choice.base(), "config": decode.to_dict(), **found.to_dict()}
        _show(found, told, self.as_json)
        what = f"{counted(found.prompts, 'prompt')}, {counted(found.pairs, 'pair')} of steps"
        console.print(f"{name}, {choice.label()}: {what}", style="dim", soft_wrap=True)
        if self.out is not None:
            self._write(found, told, self.out)
        raise typer.Exit(code)

    def _texts(self, suite: Suite | None) -> list[str]:
        chosen = taken(of_split(suite.problems(), "test"), self.count) if suite else []
        return read_prompts([*(self.words or ()), *(problem.prompt for problem in chosen)], self.prompts)

    def _measure(self, engine: Engine, texts: list[str]) -> tuple[Analysis, int]:
        """Return what was found, with a bar meanwhile, and the command's exit code: 130 if Ctrl-C ended it early."""
        try:
            with CountingBar(stderr(), at_once=False) as bar:
                task = bar.add_task("", total=100)

                def watch(stage: str, share: float) -> None:
                    bar.update(task, description=f"{stage}, %", completed=int(100 * share))

                return analyze(engine, texts, chat=self.chat, batch=self.batch, watch=watch), 0
        except AnalysisInterrupted as stopped:
            found = stopped.analysis
            note = f"interrupted: this is of {found.prompts} of the {counted(len(texts), 'prompt')}"
            stderr().print(note, style="yellow", soft_wrap=True)
            return found, 130

    def _write(self, found: Analysis, told: dict[str, Any], out: Path) -> None:
        files = draw(found, out, self.kind)
        (out / _NUMBERS).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        names = ", ".join(file.name for file in files)
        stderr().print(f"in {out}: {names}, {_NUMBERS}", style="dim", soft_wrap=True)


def _check_folder(out: Path) -> None:
    """Find out before the long work whether its pictures can be drawn and written."""
    require_matplotlib()
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a folder")
    check_writable(out / _NUMBERS)


def _show(found: Analysis, told: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(told, indent=None)
        return
    console = stdout()
    for grid in tables(found):
        table = Table(title=grid.title, title_justify="left", box=box.SIMPLE_HEAD)
        for head in grid.head:
            table.add_column(head, justify="left" if head in _TEXTS else "right")
        for row in grid.rows:
            table.add_row(*row)
        console.print(table)
