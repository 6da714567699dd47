"""What `esdllm analyze` is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import typer

from esdllm.cli import completing
from esdllm.cli.options import (
    PROMPT_FILES,
    BlockLength,
    ChatTemplate,
    Compute,
    ConfigFile,
    Debug,
    Device,
    Dtype,
    FamilyName,
    GenLength,
    Json,
    ModelName,
    ProfileName,
    Quantize,
    Sets,
)

DEFAULT_PRESET = "vanilla"


@attrs.frozen(kw_only=True)
class AnalyzeOptions:
    """Measure what changes between one denoising step and the next.

    How much confidence and the hidden states, queries, keys and values of every layer change, where, whether the one
    tells the other, and how stale a cache grows. Every step is computed once more in full, whatever the preset skips.
    Ctrl-C shows what was found in the batches before.

    \b
    esdllm analyze "Sort these numbers: 31, 4, 15." "What is 12 + 7?" --out found
    esdllm analyze --suite tiny --gen-length 64 --json
    esdllm analyze "Why is the sky blue?" --model GSAI-ML/LLaDA-8B-Instruct --preset es-dllm --batch 1
    """

    words: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="Prompts, in quotes.")] = None
    prompts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help=f"More prompts, of a file: {PROMPT_FILES}."),
    ] = None
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            autocompletion=completing.names("suite"),
            help="Prompts of a suite too: a plugin's, or a file of JSON lines; with its lengths, unless --config is given.",
        ),
    ] = None
    count: Annotated[int, typer.Option(min=1, metavar="N", help="Prompts of each of the suite's tasks.")] = 10
    model: ModelName = None
    family: FamilyName = None
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "-p",
            metavar="NAME",
            help=f"What decides the tokens, a named configuration [{DEFAULT_PRESET}].",
            autocompletion=completing.names("preset"),
        ),
    ] = None
    profile: ProfileName = None
    config: ConfigFile = None
    sets: Sets = None
    gen_length: GenLength = None
    block_length: BlockLength = None
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Prompts taken at a time.")] = 8
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Write pictures and JSON here.")] = None
    kind: Annotated[str, typer.Option("--format", metavar="NAME", help="Of the pictures: png, svg or pdf.")] = "png"
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    chat: ChatTemplate = None
    as_json: Json = False
    debug: Debug = False
