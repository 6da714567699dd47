"""The search: optuna's tree-structured Parzen estimator under the tolerance, kept in a file that can be gone on with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from esdllm.checkpoints.loading import Model
from esdllm.config import DecodeConfig, merge
from esdllm.errors import ConfigError, InputError
from esdllm.interfaces import Suite
from esdllm.measure.evaluation import Contender, Evaluation, Outcome, check_names, evaluate
from esdllm.measure.tuning.goal import Goal
from esdllm.measure.tuning.space import Space
from esdllm.measure.tuning.study import agree, alone, digest, open_study, sampler
from esdllm.measure.tuning.trials import Trial, Tuning
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.prompts import prepare
from esdllm.views import Problem

if TYPE_CHECKING:
    import optuna

__all__ = ["Search"]


class _TimeOverError(Exception):
    """The search's time is over while a setting is measured."""


@attrs.define(eq=False)
class Search:
    """A search over a model and problems. `run` tries settings, `finish` validates the best and returns the tuning."""

    model: Model
    suite: Suite
    tune: Sequence[Problem]
    """problems that settings are chosen by"""
    test: Sequence[Problem]
    """problems that the choice is validated on"""
    reference: Contender
    base: Contender
    """what the space changes; tried first as it is"""
    space: Space
    goal: Goal = attrs.field(factory=Goal)
    names: tuple[str, str] = ("", "")
    """of the model and the suite"""
    batch_size: int = 50
    seed: int = 0
    catalogue: Catalogue = attrs.field(factory=Catalogue.load)
    _reference: Outcome | None = attrs.field(default=None, init=False)
    _study: optuna.Study | None = attrs.field(default=None, init=False)
    _file: Path | None = attrs.field(default=None, init=False)
    _ends: float = attrs.field(default=float("inf"), init=False)

    def open(self, file: Path | None = None) -> int:
        """Begin, or go on with what `file` holds; return the number of settings already tried.

        Raises:
            UnavailableError: optuna is not installed, or the file cannot be read or written.
            ConfigError: the file is of another search, or reference and base decode different lengths.
            InputError: two contenders of one name, or a prompt that cannot be decoded.
        """
        self._check()
        self._study, self._file = open_study(file), file
        agree(self._study, "search", self._fingerprint(), file)
        return len(self.trials())

    def run(
        self, trials: int, seconds: float | None = None, told: Callable[[Trial, Trial | None], None] | None = None
    ) -> None:
        """Try the base, then settings until `trials` are tried in all or `seconds` are over.

        The base is measured however long it takes; a setting whose time is over is given up after its batch. `told` gets
        each trial, and the best so far.

        Raises:
            ConfigError: the file that the search is kept in was begun with another model, machine, or version.
            UnavailableError: another process is searching in that file.
        """
        study, self._ends = self._opened(), time.monotonic() + seconds if seconds is not None else float("inf")
        told = told or (lambda trial, best: None)
        with alone(self._file):
            self.reference_outcome()
            if "base" not in study.user_attrs:
                study.set_user_attr("base", json.dumps(attrs.asdict(self._record({}))))
                told(self.trials()[0], self.best())
            while (tried := len(self.trials())) < trials and time.monotonic() < self._ends:
                study.sampler = sampler(self.seed, tried)  # so that a search gone on with draws nothing twice
                try:
                    study.optimize(self._try, n_trials=1)
                except _TimeOverError:
                    return
                told(self.trials()[-1], self.best())

    def best(self) -> Trial | None:
        """Return the cheapest trial within the tolerance; None if none is."""
        allowed = [trial for trial in self.trials() if self.goal.allows(trial.loss)]
        return max(allowed, key=lambda trial: trial.speedup, default=None)

    def trials(self) -> list[Trial]:
        """Return the settings tried so far, the base first; one that a killed run left unmeasured is none."""
        study = self._opened()
        records = [trial.user_attrs["record"] for trial in study.trials if trial.values is not None]
        return [Trial(**json.loads(record)) for record in (*_base(study), *records)]

    def finish(self) -> Tuning:
        """Return the best setting, measured beside the reference and the base on the problems of `test`.

        Raises:
            InputError: no setting is within the tolerance.
        """
        best = self.best()
        if best is None:
            least = min(self.trials(), key=lambda trial: trial.loss)
            raise InputError(
                f"none of {len(self.trials())} settings is within {100 * self.goal.max_loss:g} points of the reference: the "
                f"least loss is {100 * least.loss:.1f} points; allow more with --max-loss, or try more settings"
            )
        contenders = self._contenders(best.settings)
        evaluation = evaluate(
            self.model,
            self.suite,
            self.test,
            contenders,
            names=(*self.names, "test"),
            batch_size=self.batch_size,
            catalogue=self.catalogue,
        )
        trials = tuple(self.trials())
        return Tuning(self.goal, trials, best, contenders[-1].config, evaluation, len(self.tune), self.seed)

    def configured(self, settings: Mapping[str, Any]) -> DecodeConfig:
        """Return the base configuration with settings over it."""
        return DecodeConfig.from_dict(merge(self.base.config.to_dict(), settings))

    def reference_outcome(self) -> Outcome:
        """Return what the reference makes of the problems of the search; measured once.

        Raises:
            ConfigError: the file that the search is kept in was begun with another model, machine, or version.
        """
        if self._reference is None:
            evaluation = self._measure(self.reference, warm_up=True)
            made = {"answers": digest(evaluation.reference.tokens), **evaluation.environment}
            other = ("python", "threads", "machine") if self.goal.cost == "work" else ("python",)
            agree(self._opened(), "measured", {key: made[key] for key in made if key not in other}, self._file)
            self._reference = evaluation.reference
        return self._reference

    def _contenders(self, settings: Mapping[str, Any]) -> list[Contender]:
        return [self.reference, self.base, Contender("chosen", self.configured(settings))]

    def _check(self) -> None:
        """Find out before the long work what would be in its way."""
        check_names(self._contenders({}))
        lengths = [one.config.gen_length for one in (self.reference, self.base)]
        if lengths[0] != lengths[1]:
            raise ConfigError(
                f"{self.reference.name} decodes {lengths[0]} tokens and {self.base.name} {lengths[1]}: give both one gen_length"
            )
        for problem in (*self.tune, *self.test):
            self._check_prompt(problem.prompt)

    def _check_prompt(self, prompt: str) -> None:
        try:
            prepare(self.model, [prompt], None, self.base.config.gen_length, infill=False, chat=None)
        except InputError as error:
            raise InputError(f"the prompt {prompt[:40]!r}: {error}") from error

    def _try(self, trial: optuna.Trial) -> float:
        settings = self.space.settings(lambda name, values: _choose(trial, name, values))
        same = (tried for tried in self.trials() if json.dumps(tried.settings) == json.dumps(settings))
        record = next(same, None) or self._record(settings)
        trial.set_user_attr("record", json.dumps(attrs.asdict(record)))
        trial.set_constraint("loss", record.loss - self.goal.max_loss)
        return record.speedup

    def _record(self, settings: Mapping[str, Any]) -> Trial:
        """Measure a setting."""
        outcome, reference = self._trial(settings), self.reference_outcome()
        loss = self.goal.loss(outcome, reference).value
        return Trial(settings, self.goal.quality_of(outcome, reference), loss, self.goal.speedup(outcome, reference))

    def _trial(self, settings: Mapping[str, Any]) -> Outcome:
        """Return the outcome of a setting; other than for the base, stop when the time is over."""
        left = len(self.tune)

        def check(_: str, answered: int) -> None:
            nonlocal left
            left -= answered
            if left and settings and time.monotonic() >= self._ends:
                raise _TimeOverError

        return self._measure(Contender("", self.configured(settings)), progress=check).reference

    def _measure(
        self, contender: Contender, warm_up: bool = False, progress: Callable[[str, int], None] | None = None
    ) -> Evaluation:
        return evaluate(
            self.model,
            self.suite,
            self.tune,
            [contender],
            batch_size=self.batch_size,
            warm_up=warm_up,
            catalogue=self.catalogue,
            progress=progress,
        )

    def _opened(self) -> optuna.Study:
        if self._study is None:
            self.open()
        assert self._study is not None
        return self._study

    def _fingerprint(self) -> dict[str, Any]:
        return {
            "model": self.names[0],
            "suite": self.names[1],
            "problems": digest([[one.prompt, one.answer] for one in self.tune]),
            "goal": attrs.asdict(self.goal),
            "reference": self.reference.config.to_dict(),
            "base": self.base.config.to_dict(),
            "space": self.space.choices(),
            "batch_size": self.batch_size,
            "seed": self.seed,
        }


def _base(study: optuna.Study) -> list[str]:
    return [study.user_attrs["base"]] if "base" in study.user_attrs else []


def _choose(trial: optuna.Trial, name: str, values: Sequence[Any]) -> Any:
    """Return one of the values; optuna is given their numbers, which keeps their order and any type."""
    return values[trial.suggest_int(name, 0, len(values) - 1)]
