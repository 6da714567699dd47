"""What `esdllm bench serve` is asked."""

from __future__ import annotations

from pathlib import Path
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
    GeometryName,
    Json,
    ModelName,
    Patience,
    PresetName,
    ProfileName,
    Quantize,
    Sets,
)

BACKLOG = 2  # requests for each slot
SLOTS = 8


@attrs.frozen(kw_only=True)
class BenchServeOptions:
    """Measure requests under load: latency, first text, goodput, tokens per second.

    Without --url the model decodes in this process, in slots that are refilled as rows end; --static compares that with batches
    that wait for their longest answer. Answers are as long as is drawn, unless --input brings the requests. To a server that
    asks for a key goes the one in ESDLLM_API_KEY.

    \b
    esdllm bench serve --geometry small --answer-tokens 16:256 --static
    esdllm bench serve --rate 0.5 --rate 1 --rate 2 --requests 100 --within 10
    esdllm bench serve --url http://127.0.0.1:8000 --rate 4 --burst 8 --input wanted.jsonl --plot load.png
    """

    url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Root of a server that speaks OpenAI's API [none: in this process]."),
    ] = None
    rate: Annotated[
        list[float] | None,
        typer.Option(
            metavar="R",
            help="Open loop: R requests per second on average, as a Poisson process; repeatable: one run each.",
        ),
    ] = None
    burst: Annotated[int, typer.Option(metavar="N", min=1, help="With --rate, requests come N at a moment.")] = 1
    concurrency: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N",
            min=1,
            help=f"Closed loop: N requests under way, each followed by the next; repeatable [{BACKLOG} per slot].",
        ),
    ] = None
    requests: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Requests of each run [64, or all of --input].")
    ] = None
    prompt_tokens: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTHS", help="Of each prompt: 64, 16:64 (uniform), lognormal:MEDIAN:SIGMA:MOST [16:64]."
        ),
    ] = None
    answer_tokens: Annotated[
        str, typer.Option(metavar="LENGTHS", help="Of each answer, likewise; of a line of --input that does not say.")
    ] = "16:256"
    input: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Requests as JSON lines: prompt or messages, and max_tokens and seed if told."
        ),
    ] = None
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of lengths, prompts and arrivals.")] = 0
    within: Annotated[
        float, typer.Option(metavar="SECONDS", help="Latency up to which a request counts for goodput.")
    ] = 10.0
    slots: Annotated[
        int | None, typer.Option(metavar="N", min=1, help=f"Rows decoded side by side, in this process [{SLOTS}].")
    ] = None
    max_queue: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Requests that may wait, in this process [all].")
    ] = None
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Whose steps are made first, in this process: oldest, widest, refreshes-together [the last].",
        ),
    ] = None
    patience: Patience = None
    static: Annotated[
        bool, typer.Option("--static", help="Also measure static batches, of as many rows as there are slots.")
    ] = False
    model: ModelName = None
    family: FamilyName = None
    geometry_name: GeometryName = None
    preset: PresetName = None
    profile: ProfileName = None
    config: ConfigFile = None
    sets: Sets = None
    block_length: BlockLength = None
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    threads: Annotated[int | None, typer.Option(metavar="N", min=1, help="Threads that torch uses [as it is].")] = None
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: png, svg, pdf.")] = None
    as_json: Json = False
    debug: Debug = False
