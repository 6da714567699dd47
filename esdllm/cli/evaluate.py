"""`esdllm eval`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import attrs
import typer

from esdllm.checkpoints.loading import Model
from esdllm.cli.choice import fixed_sets, tell_found
from esdllm.cli.command import command
from esdllm.cli.evaluate_tables import print_evaluation
from esdllm.cli.options import (
    BlockLength,
    Compute,
    Debug,
    Device,
    Dtype,
    FamilyName,
    GenLength,
    Json,
    ModelName,
    Quantize,
    Sets,
)
from esdllm.cli.progress import CountingBar
from esdllm.cli.shared import check_writable, load_asked, print_json, stderr
from esdllm.config.project import current_project, environment_layers
from esdllm.errors import InputError
from esdllm.interfaces import Suite
from esdllm.measure.evaluation import (
    Contender,
    Evaluation,
    EvaluationInterrupted,
    check_names,
    evaluate,
    load_suite,
    of_split,
    taken,
)
from esdllm.measure.evaluation.plots import plot_evaluation
from esdllm.measure.plots import check_format
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components
from esdllm.views import Problem

_PIPED = 140  # columns, where there is no terminal to fit into
_DEFAULT = ("vanilla", "dual-cache", "es-dllm", "es-dllm-parallel")

SuiteName = Annotated[
    str,
    typer.Option("--suite", metavar="NAME", help="A plugin's suite, or a file of JSON lines with prompt and answer."),
]
Tasks = Annotated[list[str] | None, typer.Option("--task", metavar="NAME", help="Only these tasks; repeatable.")]
BatchSize = Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Prompts decoded together.")]


@attrs.frozen(kw_only=True)
class Evaluate:
    """Measure quality and speed of presets side by side.

    Every batch is decoded by every contender in turn, so that what slows the machine slows all alike. The share of right
    answers comes with its 95 % interval, the loss against the first contender with that of a comparison on the same
    problems. Ctrl-C prints what was measured by then.

    \b
    esdllm eval --plot front.png
    esdllm eval -m tiny-llada -p vanilla -p es-dllm -p "es-dllm importance=random" --count 300
    esdllm eval --suite problems.jsonl -p vanilla -p tuned.toml -s gen_length=128 --json
    """

    model: ModelName = None
    family: FamilyName = None
    suite: SuiteName = "tiny"
    contenders: Annotated[
        list[str] | None,
        typer.Option(
            "--preset",
            "-p",
            metavar="NAME",
            help="Contender: a preset or a TOML file, with key=value after it if wanted; repeatable, the first is what "
            "the others are compared with. [vanilla, dual-cache, es-dllm, es-dllm-parallel]",
        ),
    ] = None
    profiles: Annotated[
        list[str] | None,
        typer.Option(
            "--profile",
            metavar="NAME",
            help="Contender: a profile of the project's esdllm.toml; repeatable, after --preset's.",
        ),
    ] = None
    sets: Sets = None
    gen_length: GenLength = None
    block_length: BlockLength = None
    count: Annotated[int, typer.Option(metavar="N", help="Problems of each task; 0 for all.")] = 200
    tasks: Tasks = None
    split: Annotated[str, typer.Option(metavar="NAME", help="test, tune or all.")] = "test"
    batch: BatchSize = 50
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    chat: Annotated[bool | None, typer.Option("--chat/--no-chat", help="Use the chat template [if any].")] = None
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw quality against speed: png, svg, pdf.")] = None
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every answer, one JSON object a line.")
    ] = None
    as_json: Json = False
    debug: Debug = False

    def run(self) -> None:
        """Measure the contenders, print what they did, and draw it."""
        catalogue = Catalogue.load()
        if self.split not in ("test", "tune", "all"):
            raise InputError(f"--split {self.split}; write test, tune or all")
        if self.count < 0:
            raise InputError(f"--count {self.count}; write 0 for all problems, or how many of each task")
        suite = load_suite(self.suite, catalogue)
        split = of_split(suite.problems(), self.split)  # type: ignore[arg-type]
        problems = taken(split, self.count or None, self.tasks or ())
        contenders = self._contenders(suite, catalogue)
        self._check(contenders, catalogue)
        name, loaded = load_asked(self, catalogue)
        evaluation, code = self._measure((loaded, name), suite, problems, contenders, catalogue)
        _show(evaluation, self.as_json, self.plot, self.answers)
        raise typer.Exit(code)

    def _contenders(self, suite: Suite, catalogue: Catalogue) -> list[Contender]:
        project, given = current_project(), [*fixed_sets(self.gen_length, self.block_length), *(self.sets or ())]
        wanted = self.contenders or (_DEFAULT[:1] if self.profiles else _DEFAULT)
        found = [Contender.of(text, catalogue, suite.settings, given, project) for text in wanted]
        profiles = map(current_project, self.profiles or ())
        found += [Contender.of_profile(profile, catalogue, suite.settings, given) for profile in profiles]
        tell_found(project, environment_layers())
        return found

    def _check(self, contenders: Sequence[Contender], catalogue: Catalogue) -> None:
        """Find out before the long work what would be in its way."""
        check_names(contenders)
        for contender in contenders:
            Components.resolve(contender.config, catalogue)
        check_format(self.plot)
        check_writable(self.plot)
        check_writable(self.answers)

    def _measure(
        self,
        model: tuple[Model, str],
        suite: Suite,
        problems: Sequence[Problem],
        contenders: Sequence[Contender],
        catalogue: Catalogue,
    ) -> tuple[Evaluation, int]:
        """Return the evaluation, with a bar meanwhile, and the command's exit code: 130 if Ctrl-C ended it early."""
        loaded, name = model
        try:
            with CountingBar(stderr()) as bar:
                bars = {one.name: bar.add_task(one.name, total=len(problems)) for one in contenders}
                evaluation = evaluate(
                    loaded,
                    suite,
                    problems,
                    contenders,
                    names=(name, self.suite, self.split),
                    batch_size=self.batch,
                    chat=self.chat,
                    catalogue=catalogue,
                    progress=lambda who, done: bar.advance(bars[who], done),
                )
            return evaluation, 0
        except EvaluationInterrupted as stopped:
            done = len(stopped.evaluation.problems)
            note = f"interrupted: this is of {done} of the {len(problems)} problems"
            stderr().print(note, style="yellow", soft_wrap=True)
            return stopped.evaluation, 130


eval_ = command(Evaluate)


def _show(evaluation: Evaluation, as_json: bool, plot: Path | None, answers: Path | None) -> None:
    if as_json:
        print_json(evaluation.to_dict())
    else:
        print_evaluation(evaluation)
    for path, write in ((answers, _write_answers), (plot, plot_evaluation)):
        if path:
            write(evaluation, path)
            stderr().print(f"wrote {path}", style="dim", soft_wrap=True, markup=False)


def _write_answers(evaluation: Evaluation, path: Path) -> None:
    lines = [
        {
            "contender": outcome.name,
            "task": problem.task,
            "right": right,
            "prompt": problem.prompt,
            "answer": answer,
            "expected": problem.answer,
        }
        for outcome in evaluation.outcomes
        for problem, right, answer in zip(evaluation.problems, outcome.right, outcome.answers, strict=True)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the answers {path}: {error.strerror}") from error
