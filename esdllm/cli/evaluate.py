"""`esdllm eval`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import attrs
import typer

from esdllm.checkpoints.loading import Model
from esdllm.cli.choice import fixed_sets, tell_found
from esdllm.cli.evaluate_tables import print_evaluation
from esdllm.cli.loading import load_asked
from esdllm.cli.options.evaluate import EvaluateOptions
from esdllm.cli.progress import CountingBar
from esdllm.cli.shared import check_writable, print_json, stderr
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


@attrs.frozen(kw_only=True)
class Evaluate(EvaluateOptions):
    """Decodes the problems by every contender, and prints how they did."""

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
        project, given = current_project(), [*fixed_sets(self), *(self.sets or ())]
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
