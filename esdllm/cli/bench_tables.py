"""What `esdllm bench` prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from esdllm.cli.shared import counted, stdout
from esdllm.measure.benchmarking import GAPS, WORK, Comparison, Curve, Quartiles, Report, Timing

__all__ = ["numbers_table", "print_comparison", "print_curve", "print_report", "three_digits", "wide_console"]

_DISTURBED = 0.05  # of the time
_PIPED = 140  # columns, where there is no terminal to fit into


def print_report(report: Report) -> None:
    """Print a report's tables on standard output."""
    console = wide_console()
    console.print(_title(report), soft_wrap=True, markup=False)
    if report.setting.geometry is not None:
        console.print("random weights: they measure speed and memory, and their answers mean nothing", style="yellow")
    console.print(_speeds(report))
    console.print(_arithmetic(report))
    console.print(_steps(report))
    if any(timing.shares for timing in report.timings):
        console.print(_shares(report))
    _print_peak(report, console)
    waits = [timing.waiting for timing in report.timings if timing.waiting is not None]
    if waits and max(waits) > _DISTURBED:
        console.print(
            f"others had the processor in up to {100 * max(waits):.0f} % of the time: the times are of a busy machine",
            style="yellow",
            soft_wrap=True,
        )


def print_curve(curve: Curve) -> None:
    """Print a curve's tables on standard output."""
    console, first = wide_console(), curve.reports[0]
    console.print(_title(first, without=curve.over), soft_wrap=True, markup=False)
    if first.setting.geometry is not None:
        console.print("random weights: they measure speed and memory, and their answers mean nothing", style="yellow")
    table = numbers_table(f"by {curve.over}", [*map(str, curve.values), "slope"])
    for number, name in enumerate(curve.names):
        timings = curve.timings(number)
        times = [three_digits(one.milliseconds_a_forward.median) for one in timings]
        flops = [three_digits(one.flops / max(1, one.forwards) / 1e9) for one in timings]
        memory = curve.memory_slope(number)
        table.add_row(Text(f"{name}, ms per forward"), *times, f"{curve.time_slope(number):.2f}")
        table.add_row(Text(f"{name}, GFLOPs per forward"), *flops, f"{curve.flops_slope(number):.2f}")
        table.add_row(
            Text(f"{name}, MB beside the weights"), *map(_memory, timings), "" if memory is None else f"{memory:.2f}"
        )
    console.print(table)


def print_comparison(comparison: Comparison) -> None:
    """Print what changed on standard output."""
    console = wide_console()
    for name, (before, after) in comparison.environment.items():
        console.print(f"{name}: {before} -> {after}", markup=False, soft_wrap=True)
    table = numbers_table("B over A; below 1 is less", ["time", "quartiles", "memory"])
    for change in comparison.changes:
        memory = "" if change.memory is None else f"{change.memory:.3f}"
        table.add_row(Text(change.name), f"{change.seconds.median:.3f}", _range(change.seconds, 3), memory)
        for name, ratio in change.kinds.items():
            table.add_row(Text(f"  {name}"), f"{ratio:.3f}", "", "")
    console.print(table)


def wide_console() -> Console:
    """Return the console of results, wide enough for a table where it is no terminal."""
    console = stdout()
    if not console.is_terminal:
        console.width = max(console.width, _PIPED)
    return console


def _title(report: Report, without: str = "") -> str:
    setting, configs = report.setting, [timing.config for timing in report.timings]
    lengths = {key: " or ".join(map(str, sorted({config[key] for config in configs}))) for key in _LENGTHS}
    said = {
        "length": f"prompt {setting.prompt_length}",
        **{key: f"{key} {value}" for key, value in lengths.items()},
        "batch": f"batch {setting.batch}",
        "dtype": str(report.environment["dtype"])
        + "".join(f", {name}" for name in (setting.quantize, report.environment.get("compute")) if name),
        "threads": f"{counted(setting.threads, 'thread')} on {report.environment['machine']}",
    }
    how = "each run in a process of its own" if report.fresh else "in turns in one process"
    told = ", ".join(text for key, text in said.items() if key != without)
    if setting.sample is not None:
        how += f", at most {counted(setting.sample, 'step')} of each plan, the others of the plan taken to last as long"
    return f"{setting.model}: {told}; {counted(report.rounds, 'round')}, {how}; medians, quartiles after them"


_LENGTHS = ("gen_length", "block_length")


def _speeds(report: Report) -> Table:
    heads = ["tokens\nper second", "with\nends", "forwards", "ms per\nforward", "quartiles", "MB beside\nweights"]
    table = numbers_table("per run", [*heads, "speed-up", "quartiles"])
    for timing in report.timings:
        times, speedup = timing.milliseconds_a_forward, report.speedup(timing)
        table.add_row(
            Text(timing.name),
            "" if timing.answer_tokens is None else three_digits(timing.rate(timing.answer_tokens).median),
            three_digits(timing.rate(timing.committed).median),
            str(timing.forwards),
            three_digits(times.median),
            _range(times),
            _memory(timing),
            f"{speedup.median:.2f}x",
            _range(speedup, 2),
        )
        if timing.compile_seconds:
            table.add_row(Text(f"  compiled in {timing.compile_seconds:.0f} s", style="bright_black"))
    return table


def _arithmetic(report: Report) -> Table:
    heads = ["GFLOPs per\nforward", "GFLOPs\nper second", "of the\npeak, %", "FLOPs of the\nfirst over its own"]
    table = numbers_table("counted", [*heads, "speed-up\nover that"])
    for timing in report.timings:
        ratio, share = report.flops_ratio(timing), report.peak_share(timing)
        table.add_row(
            Text(timing.name),
            three_digits(timing.flops / max(1, timing.forwards) / 1e9),
            three_digits(timing.rate(timing.flops).median / 1e9),
            "" if share is None else three_digits(100 * share),
            f"{ratio:.2f}x",
            f"{report.speedup(timing).median / ratio:.2f}",
        )
    return table


def _steps(report: Report) -> Table:
    heads = [
        "steps",
        "ms",
        "quartiles",
        "GFLOPs",
        "of the\npeak, %",
        "MB\nmoved",
        "predicted\nms",
        "ms over\npredicted",
    ]
    table = numbers_table("per step", heads)
    for timing in report.timings:
        table.add_row(Text(timing.name, style="bold"))
        for kind in timing.kinds:
            predicted, rate = report.predicted(kind), kind.flops / kind.milliseconds.median / 1e6
            table.add_row(
                Text(f"  {kind.name}"),
                str(kind.steps),
                three_digits(kind.milliseconds.median),
                _range(kind.milliseconds),
                three_digits(kind.flops / 1e9),
                three_digits(100 * rate / report.peak.best.gflops) if report.peak else "",
                three_digits(kind.bytes / 1e6),
                "" if predicted is None else three_digits(predicted),
                "" if predicted is None else f"{kind.milliseconds.median / predicted:.2f}",
            )
        between = timing.between_milliseconds
        table.add_row("  between two steps", "", three_digits(between.median), _range(between))
    return table


def _shares(report: Report) -> Table:
    gaps = any(GAPS in shares for timing in report.timings for shares in (timing.shares or {}).values())
    names = [*WORK, *([GAPS] if gaps else [])]
    table = numbers_table("of a step's time, %", [name.replace(" ", "\n") for name in names])
    for timing in report.timings:
        for kind, shares in (timing.shares or {}).items():
            shown = [f"{100 * shares[name]:.1f}" if name in shares else "" for name in names]
            table.add_row(Text(f"{timing.name}: {kind}"), *shown)
        if timing.shares and timing.config.get("compile"):
            table.add_row(Text("  profiled without compiling", style="bright_black"))
    return table


def _print_peak(report: Report, console: Console) -> None:
    if report.peak is None:
        return
    best, others = report.peak.best, [rate for rate in report.peak.rates if rate is not report.peak.best]
    rates = ", ".join(f"{rate.what} {three_digits(rate.gflops)}" for rate in others)
    console.print(
        f"peak {three_digits(best.gflops)} GFLOPs per second: {best.what}; also {rates}. Memory is read at "
        f"{three_digits(report.peak.bandwidth)} GB per second; weights take {three_digits(report.weights / 1e6)} MB.",
        markup=False,
        soft_wrap=True,
    )


def numbers_table(first: str, heads: Sequence[str]) -> Table:
    """Return an empty table of a column of names and columns of numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column(first, overflow="fold", vertical="bottom", header_style="bold")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True, vertical="bottom")
    return table


def _memory(timing: Timing) -> str:
    return three_digits(timing.memory.bytes / 1e6) if timing.memory else ""


def _range(around: Quartiles, digits: int | None = None) -> str:
    low, high = (f"{x:.{digits}f}" if digits is not None else three_digits(x) for x in (around.low, around.high))
    return f"{low} to {high}"


def three_digits(value: float) -> str:
    """Return a number with three digits that matter."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
