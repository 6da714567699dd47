"""What `esdllm trace` is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import typer

from esdllm.cli import completing
from esdllm.cli.options import (
    BlockLength,
    ChatTemplate,
    Compute,
    ConfigFile,
    Debug,
    Device,
    Dtype,
    FamilyName,
    GenLength,
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
class RecordOptions:
    """Record what a run computes, skips and refreshes, and write a page that shows it.

    The page is one file that fetches nothing: the canvas over the steps, each layer's work, variation, importance and
    confidence, the time of each step, each token's story. The lengths, the sampling and the seed hold for both runs, --set
    and --config for the first alone. The answers go to standard output.

    \b
    esdllm trace "Sort these numbers: 31, 4, 15." --html trace.html
    esdllm trace "What is 12 + 7?" --preset es-dllm --against dual-cache --html both.html
    esdllm trace "What is 12 + 7?" --against "es-dllm importance.alpha=1.0" --html both.html --json both.json
    """

    prompt: Annotated[str, typer.Argument(help="The prompt, in quotes; - reads standard input.")]
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the page here.")] = None
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers here.")] = None
    against: Annotated[
        str | None,
        typer.Option(
            metavar="CONTENDER",
            autocompletion=completing.names("preset"),
            help="A second run beside it: a preset or a TOML file, with its own settings after it, such as "
            '"es-dllm importance.alpha=1.0".',
        ),
    ] = None
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
    times: Annotated[bool, typer.Option("--times/--no-times", help="Decode once more, for the time of each step.")] = (
        True
    )
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    chat: ChatTemplate = None
    debug: Debug = False
