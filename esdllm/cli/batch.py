"""`esdllm generate --input FILE --output FILE`: prompts from a file, answers to a file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import attrs
import typer
from rich import progress as rich_progress
from rich.console import Console
from rich.progress import (
    BarColumn,
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
from esdllm.use.batching import BatchResult, BatchRun, Progress

__all__ = ["answer_file"]

_SHOWN = 10  # bad lines that are printed one by one


def answer_file(run: BatchRun, catalogue: Catalogue, restart: bool, as_json: bool) -> None:
    """Run, with a bar on standard error, and say what came out; exit with 1 if a line has no answer."""
    console = stderr()

    def watch(progress: Progress) -> None:
        if bar.last is None and run.elsewhere is None:
            setup, device = run.setup, resolve_device(run.setup.device)
            held: Any = {"compute": setup.compute, "family": setup.family, "measure": False}
            weights = describe_weights(setup.model, setup.dtype, setup.quantize, catalogue, device, **held)
            hint_dtype(device, weights.dtype)
        bar.show(progress)

    with _Bar(console) as bar:
        try:
            result = run(catalogue, restart, watch)
        except KeyboardInterrupt:
            bar.stop()
            told = (
                f"stopped: {bar.last.prompts} of {counted(bar.last.of, 'prompt')} answered" if bar.last else "stopped"
            )
            console.print(f"{told}; the same command goes on from there", style="dim", soft_wrap=True)
            raise
    if as_json:
        print_json(_as_dict(run, result), indent=None)
    for line in result.bad[:_SHOWN]:
        console.print(f"{run.source}, line {line.number}: {line.reason}", soft_wrap=True, markup=False)
    if len(result.bad) > _SHOWN:
        console.print(f"and {len(result.bad) - _SHOWN} more bad lines", soft_wrap=True)
    console.print(_summary(run.output, result), style="dim", soft_wrap=True, markup=False)
    if result.bad:
        raise typer.Exit(1)


def _summary(output: Path, result: BatchResult) -> str:
    if not result.batches and result.before == result.prompts:
        done = f"all {counted(result.prompts, 'prompt')} answered before" if result.prompts else "no prompt to answer"
    else:
        now = result.prompts - result.before
        done = f"{counted(result.prompts, 'prompt')} answered" + (
            f", {result.before} of them before" if result.before else ""
        )
        speed = f"{result.tokens / result.seconds:.0f} tokens/s" if result.seconds else ""
        batches = counted(result.batches, "batch", "batches")
        done += f": {now} now in {batches}, {counted(result.tokens, 'token')}, {speed}".rstrip(", ")
    bad = f", {counted(len(result.bad), 'bad line')}" if result.bad else ""
    return f"{done}{bad}: {output}"


def _as_dict(run: BatchRun, result: BatchResult) -> dict[str, object]:
    found = attrs.asdict(result)
    return {"output": str(run.output), **found, "bad": [attrs.asdict(line) for line in result.bad]}


class _Bar:
    """A bar with an estimate; where there is no terminal, a line now and then."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
        self._console, self._task, self._pace = console, TaskID(-1), Pace()
        self._started = 0.0, 0.0
        self.last: Progress | None = None
        self._bar = rich_progress.Progress(
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

    def show(self, progress: Progress) -> None:
        """Show how far the run is."""
        if self.last is None:
            self._started = time.monotonic(), progress.share
            self._bar.remove_task(self._task)
            self._task = self._bar.add_task("", total=1.0)
        self.last = progress
        self._bar.update(
            self._task, completed=progress.share, description=f"{progress.prompts} of {counted(progress.of, 'prompt')}"
        )
        if not self._console.is_terminal and progress.share < 1 and self._pace.due():
            told = (
                f"{progress.prompts} of {counted(progress.of, 'prompt')} answered{left(*self._started, progress.share)}"
            )
            self._console.print(told, style="dim", soft_wrap=True)
