"""The predicted cost of a run's steps, as `esdllm explain` prints it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from esdllm.cli.shared import stderr
from esdllm.errors import InputError
from esdllm.measure.benchmarking import measure_peak
from esdllm.measure.cost import Roofline
from esdllm.measure.forecast import Prediction

__all__ = ["as_dicts", "print_cost", "roofline"]


def roofline(
    gflops: float | None, bandwidth: float | None, measure: bool, device: torch.device, dtype: torch.dtype
) -> Roofline | None:
    """Return what is known of the machine; None if nothing was asked for.

    Raises:
        InputError: a rate that is not above 0, or a bandwidth without a peak.
    """
    for name, value in (("--peak-gflops", gflops), ("--peak-gbs", bandwidth)):
        if value is not None and not value > 0:
            raise InputError(f"{name} {value:g}; give a number above 0")
    if gflops is None and not measure:
        if bandwidth is not None:
            raise InputError("--peak-gbs alone predicts no time; give --peak-gflops too, or --measure")
        return None
    if not measure:
        return None if gflops is None else Roofline(gflops, bandwidth)
    with stderr().status("measuring matrix products and memory"):
        found = measure_peak(device, dtype).roofline
    return Roofline(gflops or found.gflops, bandwidth or found.bandwidth)


def as_dicts(found: Sequence[Prediction], known: Roofline | None) -> dict[str, Any]:
    """Return predictions for JSON."""
    return {
        "machine": attrs.asdict(known) if known else None,
        "kinds": [prediction._asdict() for prediction in found],
    }


def print_cost(found: Sequence[Prediction], known: Roofline | None, console: Console) -> None:
    """Print predictions: a line a kind, and the run."""
    console.print(Text("Cost", style="bold"), Text("  a step, counted from the plan", style="bright_black"), sep="")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bright_black")
    table.add_column("  kind")
    for header in ("steps", "GFLOPs", "GB moved", *(["seconds"] if known else [])):
        table.add_column(header, justify="right")
    steps = sum(one.steps for one in found)
    seconds = [(one.seconds or 0.0) * one.steps for one in found]
    whole = Prediction(
        "all",
        steps,
        sum(one.flops * one.steps for one in found),
        sum(one.bytes * one.steps for one in found),
        sum(seconds),
    )
    for one in (*found, whole):
        told = [f"{one.flops / 1e9:.4g}", f"{one.bytes / 1e9:.4g}", *([f"{one.seconds or 0.0:.4g}"] if known else [])]
        table.add_row(f"  {one.kind}", str(one.steps), *told)
    console.print(table)
    if known is None:
        console.print("  --peak-gflops or --measure predicts the seconds.", style="bright_black")
        return
    memory = f", {known.bandwidth:.4g} GB read per second" if known.bandwidth else ""
    console.print(
        f"  at {known.gflops:.4g} GFLOPs per second{memory}, whichever takes longer; "
        "`esdllm bench` measures how far off that is.",
        style="bright_black",
        soft_wrap=True,
        markup=False,
    )
