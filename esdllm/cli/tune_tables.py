"""What tuning found, as `esdllm tune` prints it."""

from __future__ import annotations

from rich import box
from rich.table import Table
from rich.text import Text

from esdllm.cli.evaluate_tables import cost_table, print_evaluation
from esdllm.cli.shared import counted, print_json, shown, stdout
from esdllm.measure.tuning import Tuning

__all__ = ["print_tuning", "too_much"]


def print_tuning(tuning: Tuning, as_json: bool) -> None:
    """Print the settings that were chosen, and how they did on other problems."""
    if as_json:
        print_json(tuning.to_dict())
        return
    stdout().print("chosen:", soft_wrap=True)
    for section, options in tuning.chosen.settings.items():
        for option, value in options.items() if isinstance(options, dict) else [("", options)]:
            stdout().print(f"  {section}{'.' * bool(option)}{option} = {shown(value)}", soft_wrap=True)
    if not tuning.chosen.settings:
        stdout().print(f"  {tuning.validation.outcomes[1].name} as it is", soft_wrap=True, markup=False)
    if tuning.goal.quality == "agreement":
        _print_agreement(tuning)
    else:
        print_evaluation(tuning.validation)


def too_much(tuning: Tuning) -> str:
    """Return what to do about settings that lose more on other problems than is allowed."""
    lost, allowed = 100 * tuning.loss.value, 100 * tuning.goal.max_loss
    return (
        f"on other problems it loses {lost:.1f} points, more than the {allowed:g} allowed: tune on more problems (--count), "
        "or allow less (--max-loss)"
    )


def _print_agreement(tuning: Tuning) -> None:
    """Print the validation's tables where nobody says what is right."""
    evaluation, console = tuning.validation, stdout()
    title = (
        f"{evaluation.model}: {counted(len(evaluation.problems), 'other prompt')} of {evaluation.suite}, compared with "
    )
    console.print(f"{title}{evaluation.reference.name}", soft_wrap=True, markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for head in ("tokens, %", "the same", "lost", "95 %"):
        table.add_column(head, justify="left" if head == "tokens, %" else "right", no_wrap=head != "tokens, %")
    for outcome in evaluation.outcomes:
        lost, same = tuning.goal.loss(outcome, evaluation.reference), 100 * evaluation.agreement(outcome)
        compared = (f"{100 * lost.value:.1f}", f"{100 * lost.low:.1f} to {100 * lost.high:.1f}")
        table.add_row(Text(outcome.name), f"{same:.1f}", *(("", "") if outcome is evaluation.reference else compared))
    console.print(table)
    console.print(cost_table(evaluation))
