"""What `esdllm tune` is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import typer

from esdllm.cli import completing
from esdllm.cli.options import (
    PROMPT_FILES,
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
    ProfileName,
    Quantize,
    Sets,
    Tasks,
)

DEFAULT_PRESET = "es-dllm-parallel"


@attrs.frozen(kw_only=True)
class TuneOptions:
    """Find the fastest settings that lose no more quality than allowed.

    Tries skip ratios and depths, alpha, refresh periods, the threshold, and whatever else the components of the preset say
    can be tuned, on one half of the problems; measures the best on the other half; writes a profile for --config.
    A killed search goes on where it stopped when --study names a file. Exits with 1 if the validation finds more loss.

    \b
    esdllm tune --max-loss 0.01 --out fast.toml --study fast.journal --plot fast.png
    esdllm tune -m DIR --prompts prompts.txt --max-loss 0.05 -s gen_length=128
    esdllm generate "What is 12 + 7?" --config fast.toml
    """

    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Profile to write, for --config.")] = Path(
        "tuned.toml"
    )
    model: ModelName = None
    family: FamilyName = None
    suite: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A plugin's suite, or a file of JSON lines with prompt and answer [tiny].",
            autocompletion=completing.names("suite"),
        ),
    ] = None
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"Prompts in place of a suite, of a file: {PROMPT_FILES}; quality is then the share of tokens equal to the "
            "reference's.",
        ),
    ] = None
    max_loss: Annotated[
        float, typer.Option(metavar="X", help="Quality that may be lost: 0.01 is one point of a hundred.")
    ] = 0.01
    trials: Annotated[int, typer.Option(metavar="N", min=1, help="Settings to try in all.")] = 60
    minutes: Annotated[
        float | None, typer.Option(metavar="X", help="Stop trying after so long; the validation comes after.")
    ] = None
    base: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "-p",
            metavar="NAME",
            autocompletion=completing.names("preset"),
            help=f"What to tune: a preset or TOML file, tried first as it is [the --profile, else {DEFAULT_PRESET}].",
        ),
    ] = None
    profile: ProfileName = None
    reference: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What quality and speed are compared with.", autocompletion=completing.names("preset")
        ),
    ] = "vanilla"
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B,C",
            autocompletion=completing.settings,
            help="Also try these values of a setting, or only these of one that is tried anyway; repeatable.",
        ),
    ] = None
    sets: Sets = None
    gen_length: GenLength = None
    block_length: BlockLength = None
    cost: Annotated[
        str, typer.Option(metavar="NAME", help="What is to be small: time, or work (positions computed; no noise).")
    ] = "time"
    count: Annotated[int, typer.Option(metavar="N", min=0, help="Problems of each task to tune on; 0 for all.")] = 100
    test_count: Annotated[
        int, typer.Option(metavar="N", min=0, help="Problems of each task to validate on; 0 for all.")
    ] = 0
    tasks: Tasks = None
    batch: BatchSize = 50
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the search.")] = 0
    study: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the search here, and go on with it if it is there.")
    ] = None
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw loss against speed: png, svg, pdf.")] = None
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    as_json: Json = False
    debug: Debug = False
