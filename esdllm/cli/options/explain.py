"""What `esdllm explain` is asked."""

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
    GeometryName,
    Json,
    Measure,
    ModelName,
    PeakBandwidth,
    PeakGflops,
    PresetName,
    ProfileName,
    Quantize,
    Sets,
    Temperature,
    TopK,
    TopP,
)


@attrs.frozen(kw_only=True)
class ExplainOptions:
    """Print a configuration, the plan of its run, and what its steps cost.

    No weights are loaded, so the largest model takes a second; a hub id needs its config.json alone.

    \b
    esdllm explain --preset dual-cache-parallel
    esdllm explain --model GSAI-ML/LLaDA-8B-Instruct --prompt-length 512
    esdllm explain --set refresh.block_refresh=8 --toml > mine.toml
    esdllm explain --set attention=auto --device cpu
    esdllm explain --geometry llada-8b --quantize int8 --peak-gflops 900
    """

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
    prompt_length: Annotated[int, typer.Option(metavar="N", min=1, help="Tokens of the prompt.")] = 64
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts decoded together.")] = 1
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    geometry_name: GeometryName = None
    peak_gflops: PeakGflops = None
    peak_gbs: PeakBandwidth = None
    measure: Measure = False
    as_json: Json = False
    as_toml: Annotated[bool, typer.Option("--toml", help="Print the configuration as --config reads it.")] = False
    debug: Debug = False
