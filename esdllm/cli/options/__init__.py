"""The options that several commands have, each as the type that typer reads it from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from esdllm.cli import completing
from esdllm.config import DEFAULT_PRESET
from esdllm.config.project import FAMILY_VARIABLE, MODEL_VARIABLE, PROFILE_VARIABLE, PROJECT_FILE

__all__ = [
    "PROMPT_FILES",
    "AdmissionName",
    "BatchSize",
    "BlockLength",
    "ChatTemplate",
    "Compute",
    "ConfigFile",
    "Debug",
    "Device",
    "Dtype",
    "FamilyName",
    "GenLength",
    "GeometryName",
    "Json",
    "Measure",
    "ModelName",
    "Patience",
    "PeakBandwidth",
    "PeakGflops",
    "PolicyName",
    "PresetName",
    "ProfileName",
    "Quantize",
    "Seed",
    "Sets",
    "SuiteName",
    "Tasks",
    "Temperature",
    "TopK",
    "TopP",
]

PROMPT_FILES = '.txt (one per line), .jsonl ({"prompt": text} per line), .csv (column prompt) or .parquet'
ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        envvar=MODEL_VARIABLE,
        autocompletion=completing.models,
        help="Checkpoint folder, hub id, or shipped name [the shipped tiny one].",
    ),
]
FamilyName = Annotated[
    str | None,
    typer.Option(
        "--family",
        metavar="NAME[,KEY=VALUE]...",
        envvar=FAMILY_VARIABLE,
        autocompletion=completing.names("model"),
        help="Model's family, and what else its config.json lacks: sdar,block_size=8 [as config.json says].",
    ),
]
PresetName = Annotated[
    str | None,
    typer.Option(
        "--preset",
        "-p",
        metavar="NAME",
        help=f"Named configuration to start from [{DEFAULT_PRESET}].",
        autocompletion=completing.names("preset"),
    ),
]
ProfileName = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        envvar=PROFILE_VARIABLE,
        autocompletion=completing.profiles,
        help=f"Profile of the project's {PROJECT_FILE}, over the file.",
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="TOML over the preset and the project's file.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        "-s",
        metavar="KEY=VALUE",
        help="One setting, such as importance.alpha=0.7, unmasking=threshold or gen_length=64; goes over --config; "
        "repeatable.",
        autocompletion=completing.settings,
    ),
]
GenLength = Annotated[
    int | None,
    typer.Option("--gen-length", "--max-new-tokens", metavar="N", help="Tokens to generate [the preset's, else 256]."),
]
BlockLength = Annotated[
    int | None, typer.Option("--block-length", metavar="N", help="Tokens decoded together [the preset's, else 64].")
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="cpu, cuda, cuda:1 [the GPU, if any].", autocompletion=completing.fixed("cpu", "cuda")
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="float32, bfloat16, float16 [the model's].",
        autocompletion=completing.fixed("float32", "bfloat16", "float16"),
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="Hold linear layers' weights in fewer bits: int8, int8-weight-only, int4-weight-only [as they are].",
        autocompletion=completing.fixed("int8", "int8-weight-only", "int4-weight-only"),
    ),
]
Compute = Annotated[
    str | None,
    typer.Option(
        metavar="KERNEL",
        help="Kernel of linear layers in full: plain, packed, pieces, fp16, or auto, the fastest here [auto].",
        autocompletion=completing.fixed("plain", "packed", "pieces", "fp16"),
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed of the sampler's noise [0].")]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", metavar="X", help="Of sampling; 0 takes the most probable token [the preset's, else 0]."
    ),
]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", metavar="X", help="Sample from the most probable tokens that hold X together [1]."),
]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="N", help="Sample from the N most probable tokens [all].")]
ChatTemplate = Annotated[bool | None, typer.Option("--chat/--no-chat", help="Use the chat template [if there is one].")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
GeometryName = Annotated[
    str | None,
    typer.Option(
        "--geometry",
        metavar="NAME[,SIZE=N]...",
        help="Model with random weights, for speed only: tiny, small, medium, llada-8b, dream-7b, and hidden=, layers=, "
        "heads=, kv_heads=, intermediate=, experts=, expert=, vocab=, context= over it.",
        autocompletion=completing.fixed("tiny", "small", "medium", "llada-8b", "dream-7b"),
    ),
]
PeakGflops = Annotated[
    float | None,
    typer.Option(
        "--peak-gflops", metavar="X", help="10^9 FLOPs per second that the machine reaches; predicts seconds."
    ),
]
PeakBandwidth = Annotated[
    float | None, typer.Option("--peak-gbs", metavar="X", help="10^9 bytes per second that it reads from memory.")
]
Measure = Annotated[bool, typer.Option("--measure", help="Measure both here, which takes seconds.")]
SuiteName = Annotated[
    str,
    typer.Option(
        "--suite",
        metavar="NAME",
        help="A plugin's suite, or a file of JSON lines with prompt and answer.",
        autocompletion=completing.names("suite"),
    ),
]
Tasks = Annotated[list[str] | None, typer.Option("--task", metavar="NAME", help="Only these tasks; repeatable.")]
BatchSize = Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Prompts decoded together.")]
Patience = Annotated[
    int | None,
    typer.Option(metavar="N", min=0, help="Steps of others that a row sees before it goes first [the policy's]."),
]
AdmissionName = Annotated[
    str, typer.Option(metavar="NAME", help="Who is admitted to a free slot: in-order, at-refreshes, alike.")
]
PolicyName = Annotated[
    str,
    typer.Option("--policy", metavar="NAME", help="Whose steps are made first: oldest, widest, refreshes-together."),
]
