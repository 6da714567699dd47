"""`esdllm tune`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import attrs
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from esdllm.catalogue import Catalogue
from esdllm.cli.evaluate import Batch, SuiteName, Tasks, print_report
from esdllm.cli.prompts import read_prompts
from esdllm.cli.shared import (
    BlockLength,
    Debug,
    Device,
    Dtype,
    GenLength,
    Json,
    ModelName,
    Sets,
    check_writable,
    default_model,
    print_json,
    shown,
    stderr,
    stdout,
)
from esdllm.errors import ConfigError, InputError
from esdllm.evaluation import Contender, load_suite, of_split, taken
from esdllm.evaluation.plots import check_format
from esdllm.interfaces import Suite
from esdllm.loading import load_model
from esdllm.tuning import Goal, Search, Space, Trial, Tuning
from esdllm.views import Problem


def tune(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="Profile to write, for --config.")] = Path(
        "tuned.toml"
    ),
    model: ModelName = None,
    suite: SuiteName = "tiny",
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='Prompts in place of a suite, one a line, or in a .jsonl file one {"prompt": text} a line: quality is then the '
            "share of tokens equal to the reference's.",
        ),
    ] = None,
    max_loss: Annotated[float, typer.Option(metavar="X", help="Share of quality that may be lost.")] = 0.01,
    trials: Annotated[int, typer.Option(metavar="N", help="Settings to try in all.")] = 60,
    minutes: Annotated[float | None, typer.Option(metavar="X", help="Stop trying after so long.")] = None,
    base: Annotated[
        str,
        typer.Option(
            "--preset", "-p", metavar="NAME", help="What to tune: a preset or TOML file, tried first as it is."
        ),
    ] = "es-dllm-parallel",
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
    count: Annotated[int, typer.Option(metavar="N", help="Problems of each task to tune on; 0 for all.")] = 100,
    test_count: Annotated[int, typer.Option(metavar="N", help="Problems of each task to validate on; 0 for all.")] = 0,
    tasks: Tasks = None,
    batch: Batch = 50,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of the search.")] = 0,
    study: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the search here, and go on with it if it is there.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw loss against speed: png, svg, pdf.")] = None,
    device: Device = None,
    dtype: Dtype = None,
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
    chosen, label, problems, others = _problems(prompts, suite, catalogue, tasks or (), count, test_count)
    given = [f"{key}={value}" for key, value in (("gen_length", gen_length), ("block_length", block_length)) if value]
    fixed = [*given, *(sets or ())]
    first = Contender.of(base, catalogue, chosen.settings, fixed)
    compared = Contender.of(reference, catalogue, chosen.settings, _run_wide(fixed))
    space = Space.of(first.config, catalogue, [text.partition("=")[0].strip() for text in fixed], search or ())
    for path in (out, plot, study):
        check_writable(path)
    check_format(plot)
    name = model or default_model(catalogue)
    with console.status(f"loading {name}"):
        loaded = load_model(name, device, dtype, catalogue)
    finder = Search(
        loaded, chosen, problems, others, compared, first, space, goal, (name, label), batch, seed, catalogue
    )
    before = finder.open(study)
    if before:
        console.print(f"going on: {before} settings are tried already", style="dim")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        shown_bar = bar.add_task("trying settings", total=trials, completed=before)

        def told(trial: Trial, best: Trial | None) -> None:
            said = (
                f"best {best.speedup:.1f}x at {100 * best.loss:+.1f} points"
                if best
                else "none within the tolerance yet"
            )
            bar.update(shown_bar, advance=1, description=said)

        finder.run(trials, None if minutes is None else 60 * minutes, told)
        bar.update(shown_bar, description="validating on other problems")
        tuning = finder.finish()
    _finish(tuning, out, plot, as_json)


def _goal(max_loss: float, cost: str, agreement: bool) -> Goal:
    if cost not in ("work", "time"):
        raise ConfigError(f"--cost {cost}; write time or work")
    try:
        return Goal(max_loss, "agreement" if agreement else "answers", cost)  # type: ignore[arg-type]
    except ValueError:
        raise ConfigError(f"--max-loss {max_loss}; write a share from 0 to below 1, such as 0.01") from None


@attrs.frozen
class _Prompts:
    """Prompts without answers, as a suite."""

    settings: dict[str, object] = attrs.field(factory=dict)

    def problems(self) -> Sequence[Problem]:
        return ()

    def correct(self, problem: Problem, answer: str) -> bool:
        return False


def _problems(
    prompts: Path | None, suite: str, catalogue: Catalogue, tasks: Sequence[str], count: int, test_count: int
) -> tuple[Suite, str, list[Problem], list[Problem]]:
    """Return the suite, its name, and the problems to tune and to validate on."""
    if prompts is not None:
        lines = read_prompts((), prompts)
        if len(lines) < 2:
            raise InputError(f"{prompts} holds {len(lines)} prompt; give at least 2, half are for the validation")
        found = [Problem(line, "") for line in lines]
        return _Prompts(), prompts.name, found[0::2], found[1::2]
    chosen = load_suite(suite, catalogue)
    every = chosen.problems()
    if all(not problem.split for problem in every):
        every = taken(every, None, tasks)
        tune, test = every[0::2], every[1::2]
    else:
        tune, test = of_split(every, "tune"), of_split(every, "test")
    if not tune or not test:
        raise InputError(f"{suite} holds {len(every)} problems; give at least 2, half are for the validation")
    return chosen, suite, taken(tune, count or None, tasks), taken(test, test_count or None, tasks)


def _run_wide(sets: Sequence[str]) -> list[str]:
    """Return the settings that hold for the reference too: those of no section."""
    return [text for text in sets if "." not in text.partition("=")[0]]


def _finish(tuning: Tuning, out: Path, plot: Path | None, as_json: bool) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(tuning.to_toml(), encoding="utf-8")
    part.replace(out)
    if plot:
        from esdllm.tuning.plots import plot_tuning

        plot_tuning(tuning, plot)
    if as_json:
        print_json(tuning.to_dict())
    else:
        stdout().print("chosen:", soft_wrap=True)
        for section, options in tuning.chosen.settings.items():
            for option, value in options.items() if isinstance(options, dict) else [("", options)]:
                stdout().print(f"  {section}{'.' * bool(option)}{option} = {shown(value)}", soft_wrap=True)
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
