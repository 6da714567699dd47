"""What `esdllm generate` is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import typer

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
    PresetName,
    ProfileName,
    Quantize,
    Seed,
    Sets,
    Temperature,
    TopK,
    TopP,
)


@attrs.frozen(kw_only=True)
class GenerateOptions:
    """Decode an answer to a prompt, or to each prompt of a file.

    The answer goes to standard output, all else to standard error. A file's answers go to --output, in its order; the same
    command goes on with a run that was stopped.

    \b
    esdllm generate "Sort these numbers: 31, 4, 15." --watch
    esdllm generate "What is 12 + 7?" --preset dual-cache --set gen_length=64
    cat prompt.txt | esdllm generate - --model GSAI-ML/LLaDA-8B-Instruct --json
    esdllm generate --input prompts.jsonl --output answers.jsonl
    esdllm generate -i prompts.jsonl -o answers.jsonl --ray 192.168.0.1:6379
    """

    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="The prompt; - reads standard input.")] = None
    source: Annotated[
        Path | None,
        typer.Option(
            "--input",
            "-i",
            metavar="FILE",
            help=f"Answer a file of prompts instead: {PROMPT_FILES}.",
        ),
    ] = None
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where its answers go: .jsonl, .csv or .parquet."),
    ] = None
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Prompts of a file decoded together.")] = 8
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Processes for a file: a GPU each, or a share of the CPU's threads [1; with --ray one a GPU, or a machine].",
        ),
    ] = None
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Answer a file on a Ray cluster; without an address the one of this machine, or one just for it.",
        ),
    ] = None
    restart: Annotated[bool, typer.Option("--restart", help="Answer a file from the beginning, whatever is there.")] = (
        False
    )
    model: ModelName = None
    family: FamilyName = None
    preset: PresetName = None
    profile: ProfileName = None
    config: ConfigFile = None
    sets: Sets = None
    gen_length: GenLength = None
    block_length: BlockLength = None
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    seed: Seed = None
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    chat: ChatTemplate = None
    as_json: Json = False
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            "-w",
            help="Show the canvas while it is denoised: dots are masked, italics candidates (grey: skipped), green was just "
            "decided, squares end the text (hollow: perhaps); bars are the positions that each layer computes.",
        ),
    ] = False
    debug: Debug = False
