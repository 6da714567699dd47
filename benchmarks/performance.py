"""The measurements of docs/performance.md: runs `esdllm bench`, keeps its reports, and prints what they say.

    python benchmarks/performance.py measure --out performance [NAME...]
    python benchmarks/performance.py table --out performance

An hour on two cores. Reports lie in the folder, one per measurement; a measurement whose report is there is not made again.
"""

from __future__ import annotations

import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from esdllm.measure.benchmarking import KindTimes, Report, Timing, read_report

ES, ONCE = "es-dllm", "es-dllm refresh.prompt_refresh=256"
COMPILED, ONCE_COMPILED, VANILLA_COMPILED = (f"{name} compile=true" for name in (ES, ONCE, "vanilla"))
PAIRS = 5
_SMALL = "--geometry small --dtype bfloat16 --block-length 64"
_TASK = f"{_SMALL} --prompt-length 512 --gen-length 256"
_ALL = (
    f"--rounds 5 --breakdown vanilla dual-cache {ES} '{ONCE}' '{VANILLA_COMPILED}' '{COMPILED}' '{ONCE_COMPILED}' bare"
)
_ONE = f"run {_TASK} --sample 4 --rounds 1 --no-peak"
_CURVE = f"{_SMALL} --gen-length 64 --sample 1 --rounds 3 vanilla dual-cache {ES}"
_BIG = "run --geometry llada-8b --dtype bfloat16 --quantize int8 --prompt-length 128 --gen-length 128 --block-length 32"

MEASUREMENTS = {
    "batch-1": f"run {_TASK} --sample 4 {_ALL}",
    "batch-8": f"run {_TASK} --batch 8 --sample 2 {_ALL}",
    "overhead": f"run {_TASK} --sample 12 --rounds 9 --no-peak {ES} bare",
    "whole": f"run {_TASK} --rounds 1 --no-peak dual-cache {ES}",
    **{
        f"{kind}-{pair}": f"{_ONE} {extra} {ES} '{COMPILED}'"
        for pair in range(PAIRS)
        for kind, extra in (("bfloat16", ""), ("int8", "--quantize int8"))
    },
    "llada-8b": f"{_BIG} --sample 3 --rounds 5 --breakdown {ES} '{COMPILED}'",
    "curve-length": f"curve --over length 256 512 1024 2048 4096 8192 {_CURVE}",
    "curve-batch": f"curve --over batch 1 2 4 8 16 32 {_CURVE} --prompt-length 192",
    "curve-layers": f"curve --over layers 8 16 32 {_CURVE} --prompt-length 192",
    "curve-vocab": f"curve --over vocab 8192 32768 131072 {_CURVE} --prompt-length 192",
}
"""By name, the arguments of `esdllm bench`."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Out = Annotated[Path, typer.Option(help="Folder of the reports.")]


@app.command()
def measure(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...")] = None, out: Out = Path("performance")
) -> None:
    """Make the measurements that are not there yet, or those named."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names or MEASUREMENTS:
        report = out / f"{name}.json"
        if report.exists():
            continue
        arguments = f"bench {MEASUREMENTS[name]} --threads 2 --json --plot {shlex.quote(str(out / name))}.png"
        print(f"{name}: esdllm {arguments}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "esdllm", *shlex.split(arguments)]
        done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
        report.write_bytes(done.stdout)


@app.command()
def table(out: Out = Path("performance")) -> None:
    """Print what the reports say, beside what was aimed at."""
    one, eight, big = (read_report(out / f"{name}.json") for name in ("batch-1", "batch-8", "llada-8b"))
    for batch, report in ((1, one), (8, eight)):
        by = by_name(report)
        tell(f"es-dllm over vanilla, batch {batch}", report.speedup(by[ES]).median, 14)
        tell(f"the same, prompt refreshed once, batch {batch}", report.speedup(by[ONCE]).median, 18)
        tell(f"the same, compiled, batch {batch}", report.speedup(by[ONCE_COMPILED]).median, 18)
        tell(
            f"the same, both compiled, batch {batch}",
            ratio(by[VANILLA_COMPILED].seconds, by[ONCE_COMPILED].seconds),
            18,
        )
        tell(f"es-dllm over dual cache, batch {batch}", ratio(by["dual-cache"].seconds, by[ES].seconds), 1.6)
        tell(
            f"speed-up over the ratio of FLOPs, batch {batch}",
            report.speedup(by[ES]).median / report.flops_ratio(by[ES]),
            0.8,
        )
        shares = (by[ES].shares or {})["skip, block"]
        rest = 100 * (1 - sum(shares[part] for part in ("linear", "attention", "head")))
        tell(f"all but linear layers, attention and head of a skip step, %, batch {batch}", rest, 10, most=True)
    framework, bare = read_report(out / "overhead.json").timings
    tell("es-dllm's time over the bare loop's, batch 1", ratio(framework.seconds, bare.seconds), 1.03, most=True)
    by = by_name(one)
    tell(
        "compiled over eager, skip step", skip(by[ES]).milliseconds.median / skip(by[COMPILED]).milliseconds.median, 1.2
    )
    pairs = [[read_report(out / f"{kind}-{pair}.json") for kind in ("bfloat16", "int8")] for pair in range(PAIRS)]
    for name in (ES, COMPILED):
        found = [[by_name(report)[name].seconds[0] for report in pair] for pair in pairs]
        tell(f"int8 over bfloat16, {name}", statistics.median(a / b for a, b in found), 1.8)
    for timing in big.timings:
        tell(f"LLaDA-8B in int8, a skip step over its floor, {timing.name}", over_floor(big, timing), 1.6, most=True)


def over_floor(report: Report, timing: Timing) -> float:
    """Return a skip step's time over the longer of reading the weights once and doing the arithmetic at the measured peak."""
    assert report.peak is not None
    kind, spec = skip(timing), report.environment["spec"]
    read = report.weights - 2 * spec["vocab"] * spec["hidden"]  # of the embedding only the rows of tokens are read
    floor = max(read / (report.peak.bandwidth * 1e9), kind.flops / (report.peak.best.gflops * 1e9))
    print(
        f"  reading {1e3 * read / (report.peak.bandwidth * 1e9):.1f} ms, arithmetic "
        f"{1e3 * kind.flops / (report.peak.best.gflops * 1e9):.1f} ms, measured {kind.milliseconds.median:.1f} ms"
    )
    return kind.milliseconds.median / 1e3 / floor


def by_name(report: Report) -> dict[str, Timing]:
    """Return what a report's contenders took."""
    return {timing.name: timing for timing in report.timings}


def skip(timing: Timing) -> KindTimes:
    """Return what a contender's skip steps took."""
    return next(kind for kind in timing.kinds if kind.kind == "skip")


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def tell(what: str, found: float, aim: float, most: bool = False) -> None:
    """Print one line."""
    met: Callable[[float, float], bool] = float.__le__ if most else float.__ge__
    print(
        f"{what:72} {found:8.3g}  {'at most' if most else 'at least'} {aim:<5} {'met' if met(found, float(aim)) else 'not met'}"
    )


if __name__ == "__main__":
    app()
