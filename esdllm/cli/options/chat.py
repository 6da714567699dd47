"""What `esdllm chat` is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import typer

from esdllm.cli import completing
from esdllm.cli.options import (
    BlockLength,
    Compute,
    ConfigFile,
    Debug,
    Device,
    Dtype,
    FamilyName,
    GenLength,
    ModelName,
    ProfileName,
    Quantize,
    Seed,
    Sets,
    Temperature,
    TopK,
    TopP,
)

DEFAULT_PRESET = "es-dllm-parallel"
"""By measurement: on 500 held-out problems each it loses nothing on tiny-llada and tiny-dream, in a third of the forwards."""


@attrs.frozen(kw_only=True)
class TalkOptions:
    """Talk with a model, the canvas denoising before your eyes.

    Each line is a message, or a command such as /help. Answers go to standard output, all else to standard error. Lines may
    come from a file or a pipe as well.

    \b
    esdllm chat
    esdllm chat --model GSAI-ML/LLaDA-8B-Instruct --preset dual-cache-parallel
    printf 'Who are you?\\nWhat is 12 + 7?\\n' | esdllm chat
    """

    model: ModelName = None
    family: FamilyName = None
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "-p",
            metavar="NAME",
            help=f"Named configuration to start from [{DEFAULT_PRESET}].",
            autocompletion=completing.names("preset"),
        ),
    ] = None
    profile: ProfileName = None
    config: ConfigFile = None
    sets: Sets = None
    gen_length: GenLength = None
    block_length: BlockLength = None
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    seed: Seed = None
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message, before the conversation.")] = (
        None
    )
    saved: Annotated[
        Path | None, typer.Option("--load", metavar="FILE", help="Go on with a conversation that /save wrote.")
    ] = None
    watch: Annotated[
        bool,
        typer.Option(
            "--watch/--no-watch",
            help="Show the canvas while it is denoised: dots are masked, italics candidates (grey: skipped), green was just "
            "decided, squares end the text (hollow: perhaps).",
        ),
    ] = True
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    debug: Debug = False
