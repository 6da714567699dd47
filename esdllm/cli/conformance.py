"""`esdllm conformance`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import attrs
import typer

from esdllm.cli.command import command
from esdllm.cli.options import Debug, Sets
from esdllm.cli.shared import stderr


@attrs.frozen(kw_only=True)
class ConformanceCheck:
    """Check decoding token by token against recorded cases.

    Prints a line for each case that differs, and exits with 1 if there is one or if none could be run; what could not be
    run is told with the reason. The data is in a clone's tests/conformance, and beside it for families and for rules.

    \b
    esdllm conformance tests/conformance
    esdllm conformance tests/conformance-families
    esdllm conformance tests/conformance-rules --mode local-leap
    esdllm conformance tests/conformance --model llada-0 --mode es-dllm
    esdllm conformance tests/conformance --set compile=true
    """

    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with cases and checkpoints, or one a family.")]
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME", help="Only one checkpoint's, such as llada-0.")
    ] = None
    mode: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only one decoding mode's, such as es-dllm, or the logits.")
    ] = None
    device: Annotated[str, typer.Option(metavar="NAME", help="Where to decode, such as cuda.")] = "cpu"
    every: Annotated[int, typer.Option(metavar="N", min=1, help="Run one case of N.")] = 1
    sets: Sets = None
    debug: Debug = False

    def run(self) -> None:
        """Run the cases, and print those that differ."""
        from esdllm.testing.conformance import NotRun
        from esdllm.testing.conformance import conformance as run

        seen = [0, 0, 0]
        with stderr().status("reading") as status:

            def show(name: str, problem: str | None) -> None:
                left = isinstance(problem, NotRun)
                seen[2 if left else problem is not None] += 1
                if problem is not None and not left:
                    typer.echo(f"FAILED {name}: {problem}")
                status.update(f"{seen[0]} passed, {seen[1]} failed, {seen[2]} not run  {name}")

            found = run(
                self.folder, self.model, self.mode, show, sets=self.sets or (), device=self.device, every=self.every
            )
        for why, names in _by_reason(found.not_run).items():
            typer.echo(f"not run: {why}: {names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}")
        typer.echo(str(found))
        if found.failures or len(found.not_run) == len(found.cases):
            raise typer.Exit(1)


def _by_reason(not_run: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the cases that could not be run, by why."""
    found: dict[str, list[str]] = {}
    for name, why in not_run.items():
        found.setdefault(why, []).append(name)
    return found


conformance = command(ConformanceCheck)
