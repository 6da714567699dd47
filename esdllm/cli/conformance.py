"""`esdllm conformance`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esdllm.cli.options import Debug, Sets
from esdllm.cli.shared import stderr


def conformance(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with cases.json and checkpoints.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME", help="Only one checkpoint's, such as llada-0.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only one decoding mode's, such as es-dllm, or the logits.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="Where to decode, such as cuda.")] = "cpu",
    every: Annotated[int, typer.Option(metavar="N", min=1, help="Run one case of N.")] = 1,
    sets: Sets = None,
    debug: Debug = False,
) -> None:
    """Check decoding token by token against recorded cases.

    Prints a line for each case that differs, and exits with 1 if there is one. The data is in a clone's tests/conformance.

    \b
    esdllm conformance tests/conformance
    esdllm conformance tests/conformance --model llada-0 --mode es-dllm
    esdllm conformance tests/conformance --set compile=true
    """
    from esdllm.testing.conformance import conformance as run

    seen = [0, 0]
    with stderr().status("reading") as status:

        def show(name: str, problem: str | None) -> None:
            seen[problem is not None] += 1
            if problem is not None:
                typer.echo(f"FAILED {name}: {problem}")
            status.update(f"{seen[0]} passed, {seen[1]} failed  {name}")

        found = run(folder, model, mode, show, sets=sets or (), device=device, every=every)
    typer.echo(str(found))
    if found.failures:
        raise typer.Exit(1)
