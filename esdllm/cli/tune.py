"""`esdllm tune`."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import typer

from esdllm.cli.choice import fixed_sets, tell_found
from esdllm.cli.loading import load_asked
from esdllm.cli.options.tune import DEFAULT_PRESET, TuneOptions
from esdllm.cli.progress import CountingBar
from esdllm.cli.prompts import read_prompts
from esdllm.cli.shared import check_writable, counted, stderr
from esdllm.cli.tune_tables import print_tuning, too_much
from esdllm.config import SECTIONS, parse_set
from esdllm.config.project import current_project, environment_layers
from esdllm.errors import ConfigError, InputError
from esdllm.interfaces import Suite
from esdllm.measure.evaluation import Contender, load_suite, taken
from esdllm.measure.plots import check_format
from esdllm.measure.tuning import Goal, Prompts, Search, Space, Trial, Tuning, parted
from esdllm.plugins.catalogue import Catalogue
from esdllm.views import Problem


@attrs.frozen(kw_only=True)
class Tune(TuneOptions):
    """Searches, validates, and writes the profile."""

    def run(self) -> None:
        """Search, validate, write the profile, and print what was found."""
        catalogue = Catalogue.load()
        goal = self._goal()
        if self.minutes is not None and not self.minutes >= 0:
            raise InputError(f"--minutes {self.minutes}; write a number from 0")
        suite, label, problems, others = self._problems(catalogue)
        base, reference = self._compared(suite, catalogue)
        space = Space.of(base.config, catalogue, _keys(self._fixed()), self.search or ())
        base.config.to_toml()  # what cannot be written is found now
        self._check_files()
        name, loaded = load_asked(self, catalogue)
        names = (name, label)
        search = Search(
            loaded, suite, problems, others, reference, base, space, goal, names, self.batch, self.seed, catalogue
        )
        tuning = self._tuned(search, sure=self.cost == "work" or len(problems) > self.batch)
        self._write(tuning)
        print_tuning(tuning, self.as_json)
        stderr().print(
            f"profile: {self.out}" + (f", plot: {self.plot}" if self.plot else ""), style="dim", soft_wrap=True
        )
        if not tuning.holds:
            stderr().print(too_much(tuning), soft_wrap=True)
            raise typer.Exit(1)

    def _goal(self) -> Goal:
        if self.cost not in ("work", "time"):
            raise ConfigError(f"--cost {self.cost}; write time or work")
        try:
            return Goal(self.max_loss, "answers" if self.prompts is None else "agreement", self.cost)  # type: ignore[arg-type]
        except ValueError:
            raise ConfigError(f"--max-loss {self.max_loss}; write a share from 0 to below 1, such as 0.01") from None

    def _problems(self, catalogue: Catalogue) -> tuple[Suite, str, list[Problem], list[Problem]]:
        """Return the suite, its name, and the problems to tune and to validate on."""
        if self.prompts is not None:
            if self.suite or self.tasks:
                raise InputError(
                    f"--prompts and {'--suite' if self.suite else '--task'}: give one; prompts are of no suite"
                )
            suite: Suite = Prompts()
            every = [Problem(text, "") for text in read_prompts((), self.prompts)]
        else:
            suite = load_suite(self.suite or "tiny", catalogue)
            every = list(suite.problems())
        label = self.prompts.name if self.prompts else self.suite or "tiny"
        tune, test = parted(every, self.tasks or ())
        if not tune or not test:
            raise InputError(
                f"{label} has {len(tune)} problems to tune on and {len(test)} others to validate on; give more"
            )
        return suite, label, taken(tune, self.count or None), taken(test, self.test_count or None)

    def _fixed(self) -> list[str]:
        """Return what is set for all runs."""
        return [*fixed_sets(self), *(self.sets or ())]

    def _compared(self, suite: Suite, catalogue: Catalogue) -> tuple[Contender, Contender]:
        """Return what is tuned, as it is, and the reference."""
        project, fixed = current_project(self.profile), self._fixed()
        if self.base is None and self.profile is not None:
            base = Contender.of_profile(project, catalogue, suite.settings, fixed)
        else:
            base = Contender.of(self.base or DEFAULT_PRESET, catalogue, suite.settings, fixed, project)
        lengths = [f"{key}={getattr(base.config, key)}" for key in ("gen_length", "block_length")]
        reference = Contender.of(self.reference, catalogue, suite.settings, [*_shared(fixed), *lengths], project)
        tell_found(project, environment_layers())
        return base, reference

    def _check_files(self) -> None:
        """Find out before the long work what would be in its way."""
        named = [path for path in (self.out, self.plot, self.study) if path]
        given = [path.resolve() for path in named]
        for path in given:
            if given.count(path) > 1:
                raise InputError(
                    f"{path.name} is named twice among --out, --plot and --study; give each a file of its own"
                )
        for path in named:
            check_writable(path)
        check_format(self.plot)

    def _tuned(self, search: Search, sure: bool) -> Tuning:
        """Return what the search finds, with a bar meanwhile; `sure` where speeds are more than one batch's time."""
        console, before = stderr(), search.open(self.study)
        if before:
            console.print(f"going on: {before} settings are tried already", style="dim")
        with CountingBar(console) as bar:
            task = bar.add_task("trying settings", total=self.trials, completed=before)

            def told(trial: Trial, best: Trial | None) -> None:
                bar.update(task, advance=1, description=_said(best, sure))

            try:
                search.run(self.trials, None if self.minutes is None else 60 * self.minutes, told)
                bar.update(task, description="validating on other problems")
                return search.finish()
            except KeyboardInterrupt:
                kept = (
                    f"kept in {self.study}: the same command goes on" if self.study else "lost; --study FILE keeps them"
                )
                done = f"{_said(search.best(), sure)}; {counted(len(search.trials()), 'setting')} tried"
                console.print(f"interrupted, {done}, {kept}", style="yellow", soft_wrap=True)
                raise typer.Exit(130) from None

    def _write(self, tuning: Tuning) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        part = self.out.with_name(self.out.name + ".part")
        part.write_text(tuning.to_toml(), encoding="utf-8")
        part.replace(self.out)
        if self.plot:
            from esdllm.measure.tuning.plots import plot_tuning

            plot_tuning(tuning, self.plot)


def _said(best: Trial | None, sure: bool) -> str:
    """Return how good the best is; how fast, too, where it is `sure`: one batch's time says nothing of that."""
    if best is None:
        return "none within the tolerance yet"
    return f"best{f' {best.speedup:.1f}x' if sure else ''} at {100 * best.loss:+.1f} points"


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
