"""`esdllm generate --input FILE --output FILE`: prompts from a file, answers to a file."""

from __future__ import annotations

import time
from pathlib import Path

import attrs
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from esdllm.checkpoints.loading import describe_weights, resolve_device
from esdllm.cli.progress import Pace, left
from esdllm.cli.shared import counted, hint_dtype, print_json, stderr
from esdllm.plugins.catalogue import Catalogue
from esdllm.use.batching import BatchReport, BatchRun
from esdllm.use.batching import Progress as Step

__all__ = ["answer_file"]

_SHOWN = 10  # bad lines that are printed one by one


def answer_file(run: BatchRun, catalogue: Catalogue, restart: bool, as_json: bool) -> None:
    """Run, with a bar on standard error, and say what came out; exit with 1 if a line has no answer."""
    console = stderr()

    def watch(step: Step) -> None:
        if bar.last is None:
            weights = describe_weights(run.setup.model, run.setup.dtype, catalogue=catalogue)
            hint_dtype(resolve_device(run.setup.device), weights.dtype)
        bar.show(step)

    with _Bar(console) as bar:
        try:
            report = run(catalogue, restart, watch)
        except KeyboardInterrupt:
            bar.stop()
            told = (
                f"stopped: {bar.last.prompts} of {counted(bar.last.of, 'prompt')} answered" if bar.last else "stopped"
            )
            console.print(f"{told}; the same command goes on from there", style="dim", soft_wrap=True)
            raise
    if as_json:
        print_json(_as_dict(run, report), indent=None)
    for line in report.bad[:_SHOWN]:
        console.print(f"{run.source}, line {line.number}: {line.reason}", soft_wrap=True, markup=False)
    if len(report.bad) > _SHOWN:
        console.print(f"and {len(report.bad) - _SHOWN} more bad lines", soft_wrap=True)
    console.print(_summary(run.output, report), style="dim", soft_wrap=True, markup=False)
    if report.bad:
        raise typer.Exit(1)


def _summary(output: Path, report: BatchReport) -> str:
    if not report.batches and report.before == report.prompts:
        done = f"all {counted(report.prompts, 'prompt')} answered before" if report.prompts else "no prompt to answer"
    else:
        now = report.prompts - report.before
        done = f"{counted(report.prompts, 'prompt')} answered" + (
            f", {report.before} of them before" if report.before else ""
        )
        speed = f"{report.tokens / report.seconds:.0f} tokens/s" if report.seconds else ""
        batches = counted(report.batches, "batch", "batches")
        done += f": {now} now in {batches}, {counted(report.tokens, 'token')}, {speed}".rstrip(", ")
    bad = f", {counted(len(report.bad), 'bad line')}" if report.bad else ""
    return f"{done}{bad}: {output}"


def _as_dict(run: BatchRun, report: BatchReport) -> dict[str, object]:
    found = attrs.asdict(report)
    return {"output": str(run.output), **found, "bad": [attrs.asdict(line) for line in report.bad]}


class _Bar:
    """A bar with an estimate; where there is no terminal, a line now and then."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
        self._console, self._task, self._pace = console, TaskID(-1), Pace()
        self._started = 0.0, 0.0
        self.last: Step | None = None
        self._bar = Progress(
            *columns,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            speed_estimate_period=24 * 3600.0,  # a batch may take minutes
            disable=not console.is_terminal,
        )

    def __enter__(self) -> _Bar:
        self._bar.start()
        self._task = self._bar.add_task("loading the model", total=None)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the bar away."""
        self._bar.stop()

    def show(self, step: Step) -> None:
        """Show how far the run is."""
        if self.last is None:
            self._started = time.monotonic(), step.share
            self._bar.remove_task(self._task)
            self._task = self._bar.add_task("", total=1.0)
        self.last = step
        self._bar.update(
            self._task, completed=step.share, description=f"{step.prompts} of {counted(step.of, 'prompt')}"
        )
        if not self._console.is_terminal and step.share < 1 and self._pace.due():
            told = f"{step.prompts} of {counted(step.of, 'prompt')} answered{left(*self._started, step.share)}"
            self._console.print(told, style="dim", soft_wrap=True)
