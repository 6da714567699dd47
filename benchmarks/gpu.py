"""What a GPU shows: that results are right there, how fast, where the time goes, and what fits.

    python benchmarks/gpu.py --out gpu              # all stages, most valuable first, in about eight minutes
    python benchmarks/gpu.py --rehearse             # every stage on the CPU at toy size, in two minutes; or --toy
    python benchmarks/gpu.py fast-8 where           # some of them
    python benchmarks/gpu.py --table --out gpu      # what an earlier run found

Each stage runs in a process of its own under a time limit. What it finds is written as it goes, a JSON line each, so that a run
that is cut loses nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from on_gpu import STAGES
from rich.console import Console
from rich.markup import escape
from rich.table import Table

LINES = "gpu.jsonl"
PATIENCE = 5
"""how many times its limit a stage may take at toy size, on a processor that others use too"""


def main(
    stages: Annotated[list[str] | None, typer.Argument(metavar="[STAGE]...", help="Default: all.")] = None,
    toy: Annotated[bool, typer.Option("--rehearse", "--toy", help="On the CPU, at toy size.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of what is found.")] = Path("gpu"),
    limit: Annotated[float, typer.Option(help="Seconds for everything; later stages are left out.")] = 540.0,
    table: Annotated[bool, typer.Option("--table", help="Only print what the folder holds.")] = False,
) -> None:
    """Measure on a GPU, and print a table of what was found."""
    if unknown := [name for name in stages or () if name not in STAGES]:
        raise typer.BadParameter(f"no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    if not table:
        out.mkdir(parents=True, exist_ok=True)
        (out / LINES).unlink(missing_ok=True)
        ends = time.monotonic() + limit
        for name in stages or STAGES:
            run(name, toy, out, ends)
    Console(width=120).print(drawn(read(out / LINES)))


def run(name: str, toy: bool, out: Path, ends: float) -> None:
    """Run a stage in a process of its own, and note how it ended."""
    seconds = min(STAGES[name].seconds * (PATIENCE if toy else 1), ends - time.monotonic())
    if seconds < 1:
        note(out, {"stage": name, "what": "ended", "value": "left out: the time is up"})
        return
    began = time.monotonic()
    command = [sys.executable, str(Path(__file__).with_name("on_gpu")), name, str(out / LINES), str(int(toy))]
    try:
        with (out / f"{name}.log").open("w", encoding="utf-8") as log:
            done = subprocess.run(command, stdout=log, stderr=log, timeout=seconds, env=environment(), check=False)
        how = "whole" if done.returncode == 0 else f"failed with {done.returncode}; see {name}.log"
    except subprocess.TimeoutExpired:
        how = f"cut at its limit of {seconds:.0f} s"
    note(out, {"stage": name, "what": "ended", "value": f"{how}, {time.monotonic() - began:.0f} s"})


def environment() -> dict[str, str]:
    """Return the environment of a stage."""
    return {**os.environ, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}


def note(out: Path, line: dict[str, Any]) -> None:
    """Write a line, and show it."""
    with (out / LINES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{line['stage']}: {line['what']} {line['value']}", file=sys.stderr, flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a run; a last line that was cut is left out."""
    whole = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in whole if line.endswith("}")]


def drawn(lines: Iterable[dict[str, Any]]) -> Table:
    """Return a table of lines."""
    found = Table("stage", "of", "what", "value", box=None)
    for line in lines:
        value = line["value"]
        found.add_row(
            line["stage"],
            line.get("of", ""),
            line["what"],
            f"{value:.4g}" if isinstance(value, float) else escape(str(value)),
        )
    return found


if __name__ == "__main__":
    typer.run(main)
