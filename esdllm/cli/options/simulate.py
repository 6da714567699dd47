"""What `esdllm simulate` is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import typer

from esdllm.cli.options import (
    AdmissionName,
    BlockLength,
    Compute,
    ConfigFile,
    Debug,
    Device,
    Dtype,
    FamilyName,
    GeometryName,
    Json,
    Measure,
    ModelName,
    Patience,
    PeakBandwidth,
    PeakGflops,
    PresetName,
    ProfileName,
    Quantize,
    Sets,
)

STATIC = "static"


@attrs.frozen(kw_only=True)
class SimulateOptions:
    """Simulate serving: the scheduler before machines of any number and speed.

    No weights are loaded. Rows make the steps that they would make, and a step takes what its arithmetic and traffic to memory
    take at the machine's peaks, and --step-ms. Each --policy is one line, and so is `static`: batches that wait for their
    longest answer.

    \b
    esdllm simulate --geometry llada-8b --peak-gflops 600000 --peak-gbs 2500 --step-ms 2 --rate 4 --rate 8 --slots 16
    esdllm simulate --geometry llada-8b --peak-gflops 600000 --peak-gbs 2500 --replicas 64 --rate 400 --requests 4000
    esdllm simulate --geometry small --measure --concurrency 16 --policy oldest --policy widest --policy static
    """

    rate: Annotated[
        list[float] | None,
        typer.Option(metavar="R", help="R requests per second on average, as a Poisson process; repeatable."),
    ] = None
    burst: Annotated[int, typer.Option(metavar="N", min=1, help="With --rate, requests come N at a moment.")] = 1
    concurrency: Annotated[
        list[int] | None,
        typer.Option(
            metavar="N", min=1, help="N requests under way, each followed by the next; repeatable [2 a slot]."
        ),
    ] = None
    requests: Annotated[int, typer.Option(metavar="N", min=1, help="Requests of each run.")] = 400
    prompt_tokens: Annotated[
        str, typer.Option(metavar="LENGTHS", help="Of each prompt: 64, 16:64 (uniform), lognormal:MEDIAN:SIGMA:MOST.")
    ] = "16:64"
    answer_tokens: Annotated[str, typer.Option(metavar="LENGTHS", help="Of each answer, likewise.")] = "16:256"
    multiple: Annotated[int, typer.Option(metavar="N", min=1, help="Lengths are rounded up to multiples of N.")] = 16
    replicas: Annotated[int, typer.Option(metavar="N", min=1, help="Machines; a request goes where fewest are.")] = 1
    slots: Annotated[int, typer.Option(metavar="N", min=1, help="Rows decoded side by side on each.")] = 8
    max_queue: Annotated[int | None, typer.Option(metavar="N", min=0, help="Requests that may wait on each [all].")] = (
        None
    )
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help=f"Who goes first: oldest, widest, refreshes-together; or {STATIC}; repeatable [all of them].",
        ),
    ] = None
    patience: Patience = None
    admission: AdmissionName = "in-order"
    within: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Latency up to which an answer counts for goodput [any].")
    ] = None
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Time after which a request is given up [none].")
    ] = None
    tokens_per_step: Annotated[
        float, typer.Option(metavar="X", min=1, help="Commits of a step on average, where logits decide how many.")
    ] = 1.0
    step_ms: Annotated[float, typer.Option(metavar="X", min=0, help="Milliseconds of each step beside its cost.")] = 0.0
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of lengths and arrivals.")] = 0
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
    peak_gflops: PeakGflops = None
    peak_gbs: PeakBandwidth = None
    measure: Measure = False
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: png, svg, pdf.")] = None
    as_json: Json = False
    debug: Debug = False
