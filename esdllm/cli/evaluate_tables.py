"""An evaluation's tables, as `esdllm eval` and `esdllm tune` print them."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from esdllm.cli.shared import counted, stdout
from esdllm.measure.evaluation import ONE_BATCH, Evaluation, Interval, Outcome

__all__ = ["cost_table", "print_evaluation", "quality_table", "task_table"]

_PIPED = 140  # columns, where there is no terminal to fit into


def print_evaluation(evaluation: Evaluation) -> None:
    """Print an evaluation's tables on standard output."""
    console = stdout()
    if not console.is_terminal:
        console.width = max(console.width, _PIPED)
    console.print(_title(evaluation), soft_wrap=True, markup=False)
    tables = [
        quality_table(evaluation),
        *([task_table(evaluation)] if len(evaluation.tasks) > 1 else []),
        cost_table(evaluation),
    ]
    for table in tables:
        console.print(table)


def quality_table(evaluation: Evaluation) -> Table:
    """Return the share of right answers, the loss against the reference, and the agreement with it."""
    table = _table("right answers, %", ["all", "95 %", "loss", "95 %", "agree, %"])
    for outcome in evaluation.outcomes:
        whole, loss = evaluation.score(outcome), evaluation.loss(outcome)
        compared = ("", "") if outcome is evaluation.reference else (_percent(loss.value, "+"), _range(loss))
        agree = _percent(evaluation.agreement(outcome))
        table.add_row(Text(outcome.name), _percent(whole.value), _range(whole), *compared, agree)
    return table


def task_table(evaluation: Evaluation) -> Table:
    """Return the share of right answers by task."""
    table = _table("by task, %", [escape(task) for task in evaluation.tasks])
    for outcome in evaluation.outcomes:
        table.add_row(
            Text(outcome.name), *(_percent(evaluation.score(outcome, task).value) for task in evaluation.tasks)
        )
    return table


def cost_table(evaluation: Evaluation) -> Table:
    """Return forwards, tokens per forward, share of the reference's computation, and speed."""
    heads = ["forwards", "tokens per\nforward", "with\nends", "compu-\ntation, %", "tokens\nper second"]
    own = evaluation.speedup(evaluation.reference)
    table = _table("per answer", [*heads, *(("speed-up", f"{own.percent} %") if own else ())])
    if own is None:
        table.caption, table.caption_justify, table.caption_style = f" speed-up: {ONE_BATCH}", "left", ""
    for outcome in evaluation.outcomes:
        table.add_row(
            Text(outcome.name),
            f"{outcome.forwards_per_answer:.1f}",
            f"{outcome.tokens_per_forward:.2f}",
            f"{outcome.canvas_tokens_per_forward:.2f}",
            _percent(evaluation.compute_share(outcome)),
            f"{outcome.tokens_per_second:.{0 if outcome.tokens_per_second >= 10 else 2}f}",
            *_speedup(evaluation, outcome),
        )
    return table


def _speedup(evaluation: Evaluation, outcome: Outcome) -> tuple[str, ...]:
    """Return a speed-up's cells, the median and its interval; empty for the reference, none where nothing was measured."""
    found = evaluation.speedup(outcome)
    if found is None:
        return ()
    return (
        ("", "") if outcome is evaluation.reference else (f"{found.value:.2f}x", f"{found.low:.2f} to {found.high:.2f}")
    )


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


def _title(evaluation: Evaluation) -> str:
    configs = [outcome.config for outcome in evaluation.outcomes]
    lengths = (
        f"{key} {' or '.join(map(str, sorted({getattr(config, key) for config in configs})))}"
        for key in ("gen_length", "block_length")
    )
    compared = f", compared with {evaluation.reference.name}" if len(configs) > 1 else ""
    return (
        f"{evaluation.model}: {counted(len(evaluation.problems), 'problem')} of {evaluation.suite} ({evaluation.split}), "
        f"{', '.join(lengths)}, batches of {evaluation.batch_size}{compared}"
    )
