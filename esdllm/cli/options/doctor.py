"""What `esdllm doctor` is asked."""

from __future__ import annotations

from typing import Annotated

import attrs
import typer

from esdllm.cli.options import (
    BlockLength,
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
    Sets,
)


@attrs.frozen(kw_only=True)
class DoctorOptions:
    """Tell what this machine can serve, and what a model and canvas would take.

    No weights are loaded; a hub id needs its config.json alone. Exits with 1 if the configuration cannot run here, or
    would not fit in the memory that is free, or if a plugin is broken, one of its commands too: each is listed with its
    reason, and the rest is told without them.

    \b
    esdllm doctor
    esdllm doctor --model GSAI-ML/LLaDA-8B-Instruct --batch 8 --length 4096
    esdllm doctor --model DIR --quantize int8 -s cache=offloaded --json
    """

    context: typer.Context
    model: ModelName = None
    family: FamilyName = None
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts decoded together.")] = 1
    length: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Columns of the canvas, prompt and answer [the model's context]."),
    ] = None
    preset: PresetName = None
    profile: ProfileName = None
    config: ConfigFile = None
    sets: Sets = None
    gen_length: GenLength = None
    block_length: BlockLength = None
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    as_json: Json = False
    debug: Debug = False
