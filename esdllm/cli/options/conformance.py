"""What `esdllm conformance` is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import typer

from esdllm.cli.options import Debug, Sets


@attrs.frozen(kw_only=True)
class ConformanceCheckOptions:
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

    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder with cases and checkpoints, or one per family.")]
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
