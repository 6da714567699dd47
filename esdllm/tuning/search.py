"""The search: optuna's tree-structured Parzen estimator under the tolerance, kept in a file that can be gone on with."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from esdllm.catalogue import Catalogue
from esdllm.config import DecodeConfig, merge
from esdllm.errors import ConfigError, InputError, UnavailableError
from esdllm.evaluation import Contender, Outcome, evaluate
from esdllm.interfaces import Suite
from esdllm.loading import Model
from esdllm.tuning.goal import Goal
from esdllm.tuning.space import Space
from esdllm.tuning.trials import Trial, Tuning
from esdllm.views import Problem

if TYPE_CHECKING:
    import optuna

__all__ = ["Search"]


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

    def open(self, file: Path | None = None) -> int:
        """Begin, or go on with what `file` holds; return the number of settings already tried.

        Raises:
            UnavailableError: optuna is not installed, or the file cannot be written.
            ConfigError: the file is of another search.
        """
        self._study = _study(file, self.seed)
        asked = self._fingerprint()
        kept = self._study.user_attrs.get("search")
        if kept is None:
            self._study.set_user_attr("search", asked)
        elif kept != asked:
            differs = ", ".join(key for key in asked if kept.get(key) != asked[key])
            raise ConfigError(f"{file} holds a search that differs in {differs}; name another file, or delete it")
        return len(self.trials())

    def run(
        self, trials: int, seconds: float | None = None, told: Callable[[Trial, Trial | None], None] | None = None
    ) -> None:
        """Try the base, then settings until `trials` are tried in all or `seconds` are over.

        `told` gets each, and the best so far.
        """
        study, ends = self._opened(), time.monotonic() + seconds if seconds is not None else None
        if "base" not in study.user_attrs:
            study.set_user_attr("base", json.dumps(attrs.asdict(self._record({}))))
        while (tried := len(self.trials())) < trials and (ends is None or time.monotonic() < ends):
            study.sampler = _sampler(self.seed + tried)  # so that a search gone on with draws nothing twice
            study.optimize(self._try, n_trials=1)
            if told:
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
                f"none of {len(self.trials())} settings is within {100 * self.goal.max_loss:g} % of the reference: the least "
                f"loss is {100 * least.loss:.1f} %; allow more with --max-loss, or try more settings"
            )
        contenders = [self.reference, self.base, Contender("tuned", self.configured(best.settings))]
        report = evaluate(
            self.model,
            self.suite,
            self.test,
            contenders,
            names=(*self.names, "test"),
            batch_size=self.batch_size,
            catalogue=self.catalogue,
        )
        return Tuning(self.goal, tuple(self.trials()), best, contenders[-1].config, report)

    def configured(self, settings: Mapping[str, Any]) -> DecodeConfig:
        """Return the base configuration with settings over it."""
        return DecodeConfig.from_dict(merge(self.base.config.to_dict(), settings))

    def reference_outcome(self) -> Outcome:
        """Return what the reference makes of the problems of the search; measured once."""
        if self._reference is None:
            self._reference = self._measure(self.reference, warm_up=True)
        return self._reference

    def _try(self, trial: optuna.Trial) -> float:
        record = self._record(self.space.settings(lambda name, values: _choose(trial, name, values)))
        trial.set_user_attr("record", json.dumps(attrs.asdict(record)))
        trial.set_constraint("loss", record.loss - self.goal.max_loss)
        return record.speedup

    def _record(self, settings: Mapping[str, Any]) -> Trial:
        """Measure a setting."""
        outcome, reference = self._measure(Contender("", self.configured(settings))), self.reference_outcome()
        loss = self.goal.loss(outcome, reference).value
        speedup = self.goal.cost_of(reference) / max(self.goal.cost_of(outcome), 1e-9)
        quality = sum(outcome.right) / len(outcome.right) if self.goal.quality == "answers" else 1 - loss
        return Trial(settings, quality, loss, speedup)

    def _measure(self, contender: Contender, warm_up: bool = False) -> Outcome:
        report = evaluate(
            self.model,
            self.suite,
            self.tune,
            [contender],
            batch_size=self.batch_size,
            warm_up=warm_up,
            catalogue=self.catalogue,
        )
        return report.reference

    def _opened(self) -> optuna.Study:
        if self._study is None:
            self.open()
        assert self._study is not None
        return self._study

    def _fingerprint(self) -> dict[str, Any]:
        return {
            "model": self.names[0],
            "suite": self.names[1],
            "problems": len(self.tune),
            "goal": attrs.asdict(self.goal),
            "reference": self.reference.config.to_dict(),
            "base": self.base.config.to_dict(),
            "space": [dimension.key for dimension in self.space.dimensions],
            "batch_size": self.batch_size,
        }


def _base(study: optuna.Study) -> list[str]:
    return [study.user_attrs["base"]] if "base" in study.user_attrs else []


def _choose(trial: optuna.Trial, name: str, values: Sequence[Any]) -> Any:
    """Return one of the values; optuna is given their numbers, which keeps their order and any type."""
    return values[trial.suggest_int(name, 0, len(values) - 1)]


def _study(file: Path | None, seed: int) -> optuna.Study:
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError as error:
        raise UnavailableError("tuning needs optuna; pip install esdllm[tune]") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = None
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            storage = JournalStorage(JournalFileBackend(str(file)))
        except (OSError, ValueError) as error:
            raise UnavailableError(f"cannot keep the search in {file}: {error}") from error
    return optuna.create_study(
        storage=storage, study_name="esdllm", direction="maximize", sampler=_sampler(seed), load_if_exists=True
    )


def _sampler(seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=12, multivariate=True)
