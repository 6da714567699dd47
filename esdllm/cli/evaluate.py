"""`esdllm eval`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from esdllm.cli.progress import CountingBar
from esdllm.cli.shared import (
    BlockLength,
    Debug,
    Device,
    Dtype,
    GenLength,
    Json,
    ModelName,
    Quantize,
    Sets,
    check_writable,
    counted,
    default_model,
    fixed_sets,
    load,
    print_json,
    stderr,
    stdout,
    tell_found,
)
from esdllm.config.project import current_project, environment_layers
from esdllm.errors import InputError
from esdllm.measure.evaluation import (
    ONE_BATCH,
    Contender,
    EvaluationInterrupted,
    Interval,
    Outcome,
    Report,
    check_names,
    evaluate,
    load_suite,
    of_split,
    taken,
)
from esdllm.measure.evaluation.plots import plot_report
from esdllm.measure.plots import check_format
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components

_PIPED = 140  # columns, where there is no terminal to fit into
_DEFAULT = ("vanilla", "dual-cache", "es-dllm", "es-dllm-parallel")

SuiteName = Annotated[
    str,
    typer.Option("--suite", metavar="NAME", help="A plugin's suite, or a file of JSON lines with prompt and answer."),
]
Tasks = Annotated[list[str] | None, typer.Option("--task", metavar="NAME", help="Only these tasks; repeatable.")]
Batch = Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Prompts decoded together.")]


def eval_(
    model: ModelName = None,
    suite: SuiteName = "tiny",
    contenders: Annotated[
        list[str] | None,
        typer.Option(
            "--preset",
            "-p",
            metavar="NAME",
            help="Contender: a preset or a TOML file, with key=value after it if wanted; repeatable, the first is what "
            "the others are compared with. [vanilla, dual-cache, es-dllm, es-dllm-parallel]",
        ),
    ] = None,
    profiles: Annotated[
        list[str] | None,
        typer.Option(
            "--profile",
            metavar="NAME",
            help="Contender: a profile of the project's esdllm.toml; repeatable, after --preset's.",
        ),
    ] = None,
    sets: Sets = None,
    gen_length: GenLength = None,
    block_length: BlockLength = None,
    count: Annotated[int, typer.Option(metavar="N", help="Problems of each task; 0 for all.")] = 200,
    tasks: Tasks = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="test, tune or all.")] = "test",
    batch: Batch = 50,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    chat: Annotated[bool | None, typer.Option("--chat/--no-chat", help="Use the chat template [if any].")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw quality against speed: png, svg, pdf.")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every answer, one JSON object a line.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure quality and speed of presets side by side.

    Every batch is decoded by every contender in turn, so that what slows the machine slows all alike. The share of right
    answers comes with its 95 % interval, the loss against the first contender with that of a comparison on the same
    problems. Ctrl-C prints what was measured by then.

    \b
    esdllm eval --plot front.png
    esdllm eval -m tiny-llada -p vanilla -p es-dllm -p "es-dllm importance=random" --count 300
    esdllm eval --suite problems.jsonl -p vanilla -p tuned.toml -s gen_length=128 --json
    """
    catalogue, console = Catalogue.load(), stderr()
    if split not in ("test", "tune", "all"):
        raise InputError(f"--split {split}; write test, tune or all")
    if count < 0:
        raise InputError(f"--count {count}; write 0 for all problems, or how many of each task")
    chosen = load_suite(suite, catalogue)
    problems = taken(of_split(chosen.problems(), split), count or None, tasks or ())  # type: ignore[arg-type]
    project, given = current_project(), [*fixed_sets(gen_length, block_length), *(sets or ())]
    wanted = contenders or (_DEFAULT[:1] if profiles else _DEFAULT)
    named = [Contender.of(text, catalogue, chosen.settings, given, project) for text in wanted]
    named += [Contender.of_profile(current_project(one), catalogue, chosen.settings, given) for one in profiles or ()]
    tell_found(project, environment_layers())
    _check(named, catalogue, plot, answers)
    name = model or default_model(catalogue)
    loaded = load(name, device, dtype, catalogue, quantize)
    code = 0
    try:
        with CountingBar(console) as bar:
            bars = {one.name: bar.add_task(one.name, total=len(problems)) for one in named}
            report = evaluate(
                loaded,
                chosen,
                problems,
                named,
                names=(name, suite, split),
                batch_size=batch,
                chat=chat,
                catalogue=catalogue,
                progress=lambda who, done: bar.advance(bars[who], done),
            )
    except EvaluationInterrupted as stopped:
        report, code = stopped.report, 130
        done = len(report.problems)
        console.print(f"interrupted: this is of {done} of the {len(problems)} problems", style="yellow", soft_wrap=True)
    _show(report, as_json, plot, answers)
    raise typer.Exit(code)


def _check(contenders: Sequence[Contender], catalogue: Catalogue, plot: Path | None, answers: Path | None) -> None:
    """Find out before the long work what would be in its way."""
    check_names(contenders)
    for contender in contenders:
        Components.resolve(contender.config, catalogue)
    check_format(plot)
    check_writable(plot)
    check_writable(answers)


def _show(report: Report, as_json: bool, plot: Path | None, answers: Path | None) -> None:
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(report)
    for path, write in ((answers, _write_answers), (plot, plot_report)):
        if path:
            write(report, path)
            stderr().print(f"wrote {path}", style="dim", soft_wrap=True, markup=False)


def print_report(report: Report) -> None:
    """Print a report's tables on standard output."""
    console = stdout()
    if not console.is_terminal:
        console.width = max(console.width, _PIPED)
    console.print(_title(report), soft_wrap=True, markup=False)
    tables = [quality_table(report), *([task_table(report)] if len(report.tasks) > 1 else []), cost_table(report)]
    for table in tables:
        console.print(table)


def quality_table(report: Report) -> Table:
    """Return the share of right answers, the loss against the reference, and the agreement with it."""
    table = _table("right answers, %", ["all", "95 %", "loss", "95 %", "agree, %"])
    for outcome in report.outcomes:
        whole, loss = report.score(outcome), report.loss(outcome)
        compared = ("", "") if outcome is report.reference else (_percent(loss.value, "+"), _range(loss))
        agree = _percent(report.agreement(outcome))
        table.add_row(Text(outcome.name), _percent(whole.value), _range(whole), *compared, agree)
    return table


def task_table(report: Report) -> Table:
    """Return the share of right answers by task."""
    table = _table("by task, %", [escape(task) for task in report.tasks])
    for outcome in report.outcomes:
        table.add_row(Text(outcome.name), *(_percent(report.score(outcome, task).value) for task in report.tasks))
    return table


def cost_table(report: Report) -> Table:
    """Return forwards, tokens per forward, share of the reference's computation, and speed."""
    heads = ["forwards", "tokens a\nforward", "with\nends", "compu-\ntation, %", "tokens\na second"]
    own = report.speedup(report.reference)
    table = _table("an answer", [*heads, *(("speed-up", f"{own.percent} %") if own else ())])
    if own is None:
        table.caption, table.caption_justify, table.caption_style = f" speed-up: {ONE_BATCH}", "left", ""
    for outcome in report.outcomes:
        table.add_row(
            Text(outcome.name),
            f"{outcome.forwards_per_answer:.1f}",
            f"{outcome.tokens_per_forward:.2f}",
            f"{outcome.canvas_tokens_per_forward:.2f}",
            _percent(report.compute_share(outcome)),
            f"{outcome.tokens_per_second:.{0 if outcome.tokens_per_second >= 10 else 2}f}",
            *_speedup(report, outcome),
        )
    return table


def _speedup(report: Report, outcome: Outcome) -> tuple[str, ...]:
    """Return a speed-up's cells, the median and its interval; empty for the reference, none where nothing was measured."""
    found = report.speedup(outcome)
    if found is None:
        return ()
    return ("", "") if outcome is report.reference else (f"{found.value:.2f}x", f"{found.low:.2f} to {found.high:.2f}")


def _table(first: str, heads: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column(first, overflow="fold", vertical="bottom", header_style="bold")
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True, vertical="bottom")  # a wrapped number cannot be read
    return table


def _percent(value: float, sign: str = "") -> str:
    return f"{round(100 * value, 1) + 0.0:{sign}.1f}"  # + 0.0: no minus before a zero


def _range(interval: Interval) -> str:
    return f"{_percent(interval.low)} to {_percent(interval.high)}"


def _title(report: Report) -> str:
    configs = [outcome.config for outcome in report.outcomes]
    lengths = (
        f"{key} {' or '.join(map(str, sorted({getattr(config, key) for config in configs})))}"
        for key in ("gen_length", "block_length")
    )
    compared = f", compared with {report.reference.name}" if len(configs) > 1 else ""
    return (
        f"{report.model}: {counted(len(report.problems), 'problem')} of {report.suite} ({report.split}), "
        f"{', '.join(lengths)}, batches of {report.batch_size}{compared}"
    )


def _write_answers(report: Report, path: Path) -> None:
    lines = [
        {
            "contender": outcome.name,
            "task": problem.task,
            "right": right,
            "prompt": problem.prompt,
            "answer": answer,
            "expected": problem.answer,
        }
        for outcome in report.outcomes
        for problem, right, answer in zip(report.problems, outcome.right, outcome.answers, strict=True)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the answers {path}: {error.strerror}") from error
