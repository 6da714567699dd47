"""Checks of what is neither planner, kernel nor store: observers, presets, suites."""

from __future__ import annotations

from typing import Any
from unittest import SkipTest

import attrs
import torch

from esdllm.config import SECTIONS, DecodeConfig
from esdllm.errors import ConfigError, UnavailableError
from esdllm.interfaces import StepObserver, Suite
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.engine import Engine
from esdllm.testing.contracts.generation import prompts, short_config
from esdllm.testing.contracts.laws import law, member_laws
from esdllm.testing.models import tiny_model
from esdllm.views import ModelSpec, Preset, Problem, StepRecord

__all__ = ["check_preset", "check_step_observer", "check_suite"]


def check_step_observer(observer: StepObserver) -> None:
    """Check a step observer in two generations of a tiny model.

    It takes a start, every step and an end, twice over, and changes neither what it is shown nor what is decoded.

    Raises:
        AssertionError: a law fails; says which.
    """
    who, catalogue = member_laws("observers", observer), Catalogue.load()
    engine = Engine.build(tiny_model(catalogue=catalogue), short_config(catalogue), catalogue)
    rows = prompts(engine.model)
    expected = engine.generate(rows).tokens
    for run in ("first", "second"):
        guarded = _Guarded(observer, who)
        found = engine.generate(rows, observers=[guarded]).tokens
        law(torch.equal(found, expected), f"{who}: with it in the {run} run, other tokens are decoded")


@attrs.define
class _Guarded:
    """An observer that looks at whether another changes what it is shown."""

    inner: StepObserver
    who: str

    def start(self, tokens: torch.Tensor, spec: ModelSpec) -> None:
        before = tokens.clone()
        self.inner.start(tokens, spec)
        law(torch.equal(before, tokens), f"{self.who} changes the canvas at the start; copy what is to be changed")

    def step(self, record: StepRecord) -> None:
        shown = {name: x for name, x in record._asdict().items() if isinstance(x, torch.Tensor)}
        before = {name: x.clone() for name, x in shown.items()}
        self.inner.step(record)
        for name, x in shown.items():
            law(torch.equal(before[name], x), f"{self.who} changes a record's {name}; copy what is to be changed")

    def end(self) -> None:
        self.inner.end()


def check_preset(preset: Preset, catalogue: Catalogue | None = None) -> None:
    """Check a preset: one line of summary, and settings that are complete, name installed components and can be planned.

    Raises:
        AssertionError: a law fails; says which.
        unittest.SkipTest: a component cannot serve on the CPU; gives its reasons. pytest counts the test as skipped.
    """
    catalogue = catalogue or Catalogue.load()
    who = f"the preset '{preset.summary[:40]}'"
    told = bool(preset.summary.strip()) and "\n" not in preset.summary
    law(told, f"{who}: summary = {preset.summary!r}; give one line on what it is")
    try:
        config = DecodeConfig.from_dict(preset.settings)
        for section in SECTIONS:
            catalogue.build(section, getattr(config, section))
    except ConfigError as error:
        raise AssertionError(f"{who} is no configuration: {error}") from error
    again = DecodeConfig.from_dict(config.to_dict())
    law(again == config, f"{who} changes on its way to a dictionary and back: {config} became {again}")
    try:
        Engine.build(tiny_model(catalogue=catalogue), config, catalogue)
    except UnavailableError as error:
        raise SkipTest(f"{who}: {error}") from error
    except ConfigError as error:
        raise AssertionError(f"{who} cannot be planned: {error}") from error


def check_suite(suite: Suite) -> None:
    """Check a suite: problems that are always the same, whose own answers are right, and settings that are known.

    Raises:
        AssertionError: a law fails; says which.
    """
    who, problems = member_laws("suite", suite), list(suite.problems())
    law(bool(problems), f"{who} has no problem")
    law(list(suite.problems()) == problems, f"{who} gives other problems the second time")
    for number, problem in enumerate(problems):
        law(isinstance(problem, Problem), f"{who}: problem {number} is {problem!r:.80}; give a Problem")
        law(problem.split in ("", "tune", "test"), f"{who}: problem {number} has the split '{problem.split}'")
        right = suite.correct(problem, problem.answer)
        law(right is True, f"{who} says {right!r} of its own answer to problem {number}, {problem.answer!r:.60}")
    known: dict[str, Any] = {field.name: field for field in attrs.fields(DecodeConfig)}
    unknown = sorted(set(suite.settings) - set(known))
    law(not unknown, f"{who}: the settings {unknown} are none of {', '.join(sorted(known))}")
