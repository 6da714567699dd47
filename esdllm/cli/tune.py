"""`esdllm tune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from esdllm.cli.evaluate import Batch, Tasks, cost_table, print_report
from esdllm.cli.progress import CountingBar
from esdllm.cli.prompts import read_prompts
from esdllm.cli.shared import (
    BlockLength,
    Debug,
    Device,
    Dtype,
    GenLength,
    Json,
    ModelName,
    ProfileName,
    Quantize,
    Sets,
    check_writable,
    counted,
    default_model,
    fixed_sets,
    load,
    print_json,
    shown,
    stderr,
    stdout,
    tell_found,
)
from esdllm.config import SECTIONS, parse_set
from esdllm.config.project import current_project, environment_layers
from esdllm.errors import ConfigError, InputError
from esdllm.interfaces import Suite
from esdllm.measure.evaluation import Contender, load_suite, taken
from esdllm.measure.plots import check_format
from esdllm.measure.tuning import Goal, Prompts, Search, Space, Trial, Tuning, parted
from esdllm.plugins.catalogue import Catalogue
from esdllm.views import Problem

_PRESET = "es-dllm-parallel"


def tune(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Profile to write, for --config.")] = Path(
        "tuned.toml"
    ),
    model: ModelName = None,
    suite: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="A plugin's suite, or a file of JSON lines with prompt and answer [tiny]."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Prompts in place of a suite, one a line, or in a .jsonl file one {"prompt": text} a line: quality is then the '
            "share of tokens equal to the reference's.",
        ),
    ] = None,
    max_loss: Annotated[
        float, typer.Option(metavar="X", help="Quality that may be lost: 0.01 is one point of a hundred.")
    ] = 0.01,
    trials: Annotated[int, typer.Option(metavar="N", min=1, help="Settings to try in all.")] = 60,
    minutes: Annotated[
        float | None, typer.Option(metavar="X", help="Stop trying after so long; the validation comes after.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--preset",
            "-p",
            metavar="NAME",
            help=f"What to tune: a preset or TOML file, tried first as it is [the --profile, else {_PRESET}].",
        ),
    ] = None,
    profile: ProfileName = None,
    reference: Annotated[
        str, typer.Option(metavar="NAME", help="What quality and speed are compared with.")
    ] = "vanilla",
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=A,B,C",
            help="Also try these values of a setting, or only these of one that is tried anyway; repeatable.",
        ),
    ] = None,
    sets: Sets = None,
    gen_length: GenLength = None,
    block_length: BlockLength = None,
    cost: Annotated[
        str, typer.Option(metavar="NAME", help="What is to be small: time, or work (positions computed; no noise).")
    ] = "time",
    count: Annotated[int, typer.Option(metavar="N", min=0, help="Problems of each task to tune on; 0 for all.")] = 100,
    test_count: Annotated[
        int, typer.Option(metavar="N", min=0, help="Problems of each task to validate on; 0 for all.")
    ] = 0,
    tasks: Tasks = None,
    batch: Batch = 50,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of the search.")] = 0,
    study: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the search here, and go on with it if it is there.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw loss against speed: png, svg, pdf.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    quantize: Quantize = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find the fastest settings that lose no more quality than allowed.

    Tries skip ratios and depths, alpha, refresh periods, the threshold, and whatever else the components of the preset say
    can be tuned, on one half of the problems; measures the best on the other half; writes a profile for --config.
    A killed search goes on where it stopped when --study names a file. Exits with 1 if the validation finds more loss.

    \b
    esdllm tune --max-loss 0.01 --out fast.toml --study fast.journal --plot fast.png
    esdllm tune -m DIR --prompts prompts.txt --max-loss 0.05 -s gen_length=128
    esdllm generate "What is 12 + 7?" --config fast.toml
    """
    catalogue, console = Catalogue.load(), stderr()
    goal = _goal(max_loss, cost, prompts is not None)
    if minutes is not None and not minutes >= 0:
        raise InputError(f"--minutes {minutes}; write a number from 0")
    chosen, label, problems, others = _problems(prompts, suite, catalogue, tasks or (), count, test_count)
    project, fixed = current_project(profile), [*fixed_sets(gen_length, block_length), *(sets or ())]
    if base is None and profile is not None:
        first = Contender.of_profile(project, catalogue, chosen.settings, fixed)
    else:
        first = Contender.of(base or _PRESET, catalogue, chosen.settings, fixed, project)
    lengths = [f"{key}={getattr(first.config, key)}" for key in ("gen_length", "block_length")]
    compared = Contender.of(reference, catalogue, chosen.settings, [*_shared(fixed), *lengths], project)
    tell_found(project, environment_layers())
    space = Space.of(first.config, catalogue, _keys(fixed), search or ())
    first.config.to_toml()  # what cannot be written is found now
    _check_apart(out, plot, study)
    for path in (out, plot, study):
        check_writable(path)
    check_format(plot)
    name = model or default_model(catalogue)
    loaded = load(name, device, dtype, catalogue, quantize)
    finder = Search(
        loaded, chosen, problems, others, compared, first, space, goal, (name, label), batch, seed, catalogue
    )
    before = finder.open(study)
    if before:
        console.print(f"going on: {before} settings are tried already", style="dim")
    sure = cost == "work" or len(problems) > batch
    with CountingBar(console) as bar:
        shown_bar = bar.add_task("trying settings", total=trials, completed=before)

        def told(trial: Trial, best: Trial | None) -> None:
            bar.update(shown_bar, advance=1, description=_said(best, sure))

        try:
            finder.run(trials, None if minutes is None else 60 * minutes, told)
            bar.update(shown_bar, description="validating on other problems")
            tuning = finder.finish()
        except KeyboardInterrupt:
            kept = f"kept in {study}: the same command goes on" if study else "lost; --study FILE keeps them"
            done = counted(len(finder.trials()), "setting")
            console.print(
                f"interrupted, {_said(finder.best(), sure)}; {done} tried, {kept}", style="yellow", soft_wrap=True
            )
            raise typer.Exit(130) from None
    _finish(tuning, out, plot, as_json)


def _said(best: Trial | None, sure: bool) -> str:
    """Return how good the best is; how fast, too, where it is `sure`: one batch's time says nothing of that."""
    if best is None:
        return "none within the tolerance yet"
    return f"best{f' {best.speedup:.1f}x' if sure else ''} at {100 * best.loss:+.1f} points"


def _goal(max_loss: float, cost: str, agreement: bool) -> Goal:
    if cost not in ("work", "time"):
        raise ConfigError(f"--cost {cost}; write time or work")
    try:
        return Goal(max_loss, "agreement" if agreement else "answers", cost)  # type: ignore[arg-type]
    except ValueError:
        raise ConfigError(f"--max-loss {max_loss}; write a share from 0 to below 1, such as 0.01") from None


def _problems(
    prompts: Path | None, suite: str | None, catalogue: Catalogue, tasks: Sequence[str], count: int, test_count: int
) -> tuple[Suite, str, list[Problem], list[Problem]]:
    """Return the suite, its name, and the problems to tune and to validate on."""
    if prompts is not None:
        if suite or tasks:
            raise InputError(f"--prompts and {'--suite' if suite else '--task'}: give one; prompts are of no suite")
        found: Suite = Prompts()
        every = [Problem(text, "") for text in read_prompts((), prompts)]
    else:
        found = load_suite(suite or "tiny", catalogue)
        every = list(found.problems())
    label = prompts.name if prompts else suite or "tiny"
    tune, test = parted(every, tasks)
    if not tune or not test:
        raise InputError(
            f"{label} has {len(tune)} problems to tune on and {len(test)} others to validate on; give more"
        )
    return found, label, taken(tune, count or None), taken(test, test_count or None)


_SHARED = ("sampler", "attention")
"""sections that say what is asked and what it runs on, not how steps are saved: the reference is given them too"""


def _shared(sets: Sequence[str]) -> list[str]:
    """Return the settings that hold for the reference too."""
    sections = {text: next(iter(parse_set(text))) for text in sets}
    return [text for text in sets if sections[text] not in SECTIONS or sections[text] in _SHARED]


def _keys(sets: Sequence[str]) -> list[str]:
    """Return what is set, by key: a section's options each."""
    pairs = [pair for text in sets for pair in parse_set(text).items()]
    return [
        key
        for name, value in pairs
        for key in ([f"{name}.{option}" for option in value] if isinstance(value, dict) else [name])
    ]


def _check_apart(*paths: Path | None) -> None:
    given = [path.resolve() for path in paths if path]
    for path in given:
        if given.count(path) > 1:
            raise InputError(f"{path.name} is named twice among --out, --plot and --study; give each a file of its own")


def _finish(tuning: Tuning, out: Path, plot: Path | None, as_json: bool) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(tuning.to_toml(), encoding="utf-8")
    part.replace(out)
    if plot:
        from esdllm.measure.tuning.plots import plot_tuning

        plot_tuning(tuning, plot)
    if as_json:
        print_json(tuning.to_dict())
    else:
        stdout().print("chosen:", soft_wrap=True)
        for section, options in tuning.chosen.settings.items():
            for option, value in options.items() if isinstance(options, dict) else [("", options)]:
                stdout().print(f"  {section}{'.' * bool(option)}{option} = {shown(value)}", soft_wrap=True)
        if not tuning.chosen.settings:
            stdout().print(f"  {tuning.validation.outcomes[1].name} as it is", soft_wrap=True, markup=False)
        if tuning.goal.quality == "agreement":
            _print_agreement(tuning)
        else:
            print_report(tuning.validation)
    stderr().print(f"profile: {out}" + (f", plot: {plot}" if plot else ""), style="dim", soft_wrap=True)
    if not tuning.holds:
        lost, allowed = 100 * tuning.loss.value, 100 * tuning.goal.max_loss
        stderr().print(
            f"on other problems it loses {lost:.1f} points, more than the {allowed:g} allowed: tune on more problems (--count), "
            "or allow less (--max-loss)",
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _print_agreement(tuning: Tuning) -> None:
    """Print the validation's tables where nobody says what is right."""
    report, console = tuning.validation, stdout()
    title = f"{report.model}: {counted(len(report.problems), 'other prompt')} of {report.suite}, compared with "
    console.print(f"{title}{report.reference.name}", soft_wrap=True, markup=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for head in ("tokens, %", "the same", "lost", "95 %"):
        table.add_column(head, justify="left" if head == "tokens, %" else "right", no_wrap=head != "tokens, %")
    for outcome in report.outcomes:
        lost, same = tuning.goal.loss(outcome, report.reference), 100 * report.agreement(outcome)
        compared = (f"{100 * lost.value:.1f}", f"{100 * lost.low:.1f} to {100 * lost.high:.1f}")
        table.add_row(Text(outcome.name), f"{same:.1f}", *(("", "") if outcome is report.reference else compared))
    console.print(table)
    console.print(cost_table(report))
