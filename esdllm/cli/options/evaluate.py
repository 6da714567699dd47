"""What `esdllm eval` is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import typer

from esdllm.cli import completing
from esdllm.cli.options import (
    BatchSize,
    BlockLength,
    Compute,
    Debug,
    Device,
    Dtype,
    FamilyName,
    GenLength,
    Json,
    ModelName,
    Quantize,
    Sets,
    SuiteName,
    Tasks,
)


@attrs.frozen(kw_only=True)
class EvaluateOptions:
    """Measure quality and speed of presets side by side.

    Every batch is decoded by every contender in turn, so that what slows the machine slows all alike. The share of right
    answers comes with its 95 % interval, the loss against the first contender with that of a comparison on the same
    problems. Ctrl-C prints what was measured by then.

    \b
    esdllm eval --plot front.png
    esdllm eval -m tiny-llada -p vanilla -p es-dllm -p "es-dllm importance=random" --count 300
    esdllm eval --suite problems.jsonl -p vanilla -p tuned.toml -s gen_length=128 --json
    """

    model: ModelName = None
    family: FamilyName = None
    suite: SuiteName = "tiny"
    contenders: Annotated[
        list[str] | None,
        typer.Option(
            "--preset",
            "-p",
            metavar="NAME",
            autocompletion=completing.names("preset"),
            help="Contender: a preset or a TOML file, with key=value after it if wanted; repeatable, the first is what "
            "the others are compared with. [vanilla, dual-cache, es-dllm, es-dllm-parallel]",
        ),
    ] = None
    profiles: Annotated[
        list[str] | None,
        typer.Option(
            "--profile",
            metavar="NAME",
            autocompletion=completing.profiles,
            help="Contender: a profile of the project's esdllm.toml; repeatable, after --preset's.",
        ),
    ] = None
    sets: Sets = None
    gen_length: GenLength = None
    block_length: BlockLength = None
    count: Annotated[int, typer.Option(metavar="N", help="Problems of each task; 0 for all.")] = 200
    tasks: Tasks = None
    split: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="test, tune or all.",
            autocompletion=completing.fixed("test", "tune", "all"),
        ),
    ] = "test"
    batch: BatchSize = 50
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    chat: Annotated[bool | None, typer.Option("--chat/--no-chat", help="Use the chat template [if any].")] = None
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw quality against speed: png, svg, pdf.")] = None
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every answer, one JSON object per line.")
    ] = None
    as_json: Json = False
    debug: Debug = False
