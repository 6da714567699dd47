"""`esdllm conformance`."""

from __future__ import annotations

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

    Prints a line for each case that differs, and exits with 1 if there is one. The data is in a clone's tests/conformance.

    \b
    esdllm conformance tests/conformance
    esdllm conformance tests/conformance --model llada-0 --mode es-dllm
    esdllm conformance tests/conformance --set compile=true
    """

    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with cases.json and checkpoints.")]
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
        from esdllm.testing.conformance import conformance as run

        seen = [0, 0]
        with stderr().status("reading") as status:

            def show(name: str, problem: str | None) -> None:
                seen[problem is not None] += 1
                if problem is not None:
                    typer.echo(f"FAILED {name}: {problem}")
                status.update(f"{seen[0]} passed, {seen[1]} failed  {name}")

            found = run(
                self.folder, self.model, self.mode, show, sets=self.sets or (), device=self.device, every=self.every
            )
        typer.echo(str(found))
        if found.failures:
            raise typer.Exit(1)


conformance = command(ConformanceCheck)
