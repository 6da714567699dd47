"""What `esdllm bench serve` prints."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from esdllm.cli.bench_tables import numbers_table, three_digits, wide_console
from esdllm.cli.shared import counted
from esdllm.measure.benchmarking.serving import Percentiles, ServeReport, ServeRun

__all__ = ["latency_table", "print_serving"]


def print_serving(report: ServeReport) -> None:
    """Print a report's tables on standard output."""
    console = wide_console()
    console.print(_title(report), soft_wrap=True, markup=False)
    console.print(_rates(report))
    console.print(latency_table("first text", ((_name(run), run.latency, run.first) for run in report.runs)))
    for run, static in report.compared():
        ratio = run.tokens_a_second / static.tokens_a_second if static.tokens_a_second else float("inf")
        console.print(
            f"{run.load.name}: {ratio:.2f}x the tokens per second of static batches", soft_wrap=True, markup=False
        )


def _title(report: ServeReport) -> str:
    traffic = report.traffic
    where = traffic.get("input") or f"prompts {traffic['prompt_tokens']}, answers {traffic['answer_tokens']}"
    around = report.environment
    place = (
        around.get("url")
        or f"{counted(around['slots'], 'slot')}, {around['dtype']}, {counted(around['threads'], 'thread')}"
    )
    return f"{report.model}: {counted(traffic['requests'], 'request')} per run, {where} tokens, seed {traffic['seed']}; {place}"


def _name(run: ServeRun) -> Text:
    return Text(f"{run.load.name}, {run.target}")


def _rates(report: ServeReport) -> Table:
    heads = ["answered", "errors", "requests\nper second", f"goodput,\n{report.within:g} s", "tokens\nper second"]
    table = numbers_table("per run", [*heads, "slots\nbusy, %", "under\nbacklog", "rows\nper step"])
    for run in report.runs:
        errors = ", ".join(f"{count} {kind}" for kind, count in run.errors.items())
        table.add_row(
            _name(run),
            str(len(run.sound)),
            Text(errors or "0"),
            three_digits(run.requests_a_second),
            three_digits(run.goodput(report.within)),
            three_digits(run.tokens_a_second),
            *(_percent(run.slots_busy(backlog)) for backlog in (False, True)),
            "" if run.rows_a_step is None else three_digits(run.rows_a_step),
        )
    return table


def latency_table(first: str, runs: Iterable[tuple[Text, Percentiles | None, Percentiles | None]]) -> Table:
    """Return a table of seconds: of each run its name, its latency, and the time to what `first` names."""
    heads = [f"{what}\np{part}" for what in ("latency", first) for part in (50, 95, 99)]
    table = numbers_table("seconds", heads)
    for name, *times in runs:
        table.add_row(name, *(cell for found in times for cell in _cells(found)))
    return table


def _cells(found: Percentiles | None) -> list[str]:
    return [""] * 3 if found is None else [three_digits(value) for value in (found.p50, found.p95, found.p99)]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"
