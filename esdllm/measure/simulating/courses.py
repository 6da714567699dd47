"""What a row does step by step, told without a device: as a scheduler sees it, and what each step costs."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import attrs
import torch

from esdllm.errors import InputError
from esdllm.plan import Facts, Step, StepPlan
from esdllm.planning.schedule import Planner
from esdllm.runtime.components import Components
from esdllm.runtime.seats import row_form, row_planner, shares_columns
from esdllm.serving.scheduler import Upcoming
from esdllm.views import ModelSpec

__all__ = ["Course", "Courses", "walked"]


@attrs.frozen(eq=False)
class Course:
    """The steps of a row."""

    columns: int
    """of its canvas"""
    upcoming: tuple[Upcoming, ...]
    """each step, as the scheduler is told of it; forms are numbers"""
    plans: tuple[StepPlan, ...]
    """each step's"""


@attrs.define(eq=False)
class Courses:
    """The courses of rows by the lengths of prompt and answer, of one model under one configuration.

    Where the logits decide how many positions a step commits, `rate` is their mean number; each length then has `kinds` courses,
    drawn by chance. Otherwise it has one.
    """

    components: Components
    spec: ModelSpec
    rate: float = 1.0
    kinds: int = 8
    adaptive: bool = attrs.field(init=False)
    """whether the logits decide"""
    _known: dict[tuple[int, int, int], Course] = attrs.field(factory=dict, init=False)
    _forms: dict[object, int] = attrs.field(factory=dict, init=False)

    @adaptive.default
    def _adaptive(self) -> bool:
        return self.components.unmasking.counts(self.components.config.block_length, 1) is None

    def of(self, prompt: int, answer: int, number: int = 0) -> Course:
        """Return the course of a row, the request of this number.

        Raises:
            InputError: prompt and answer exceed the model's context.
            ConfigError: settings that contradict each other.
        """
        if prompt + answer > self.spec.context:
            raise InputError(
                f"{prompt} prompt tokens and {answer} to answer exceed the model's context of {self.spec.context}; ask for fewer"
            )
        kind = number % self.kinds if self.adaptive else 0
        if (prompt, answer, kind) not in self._known:
            self._known[prompt, answer, kind] = self._walk(prompt, answer, Random(kind))
        return self._known[prompt, answer, kind]

    def _walk(self, prompt: int, answer: int, chance: Random) -> Course:
        config = attrs.evolve(self.components.config, gen_length=answer)
        components = attrs.evolve(self.components, config=config)
        layout = components.layout(prompt, self.spec, 1, torch.device("cpu"))
        planner = row_planner(components, layout, self.spec.n_layers, components.behind)
        steps = walked(planner, lambda: _number(self.rate, chance))
        forms = (self._forms.setdefault(row_form(step, layout.length, components), len(self._forms)) for step in steps)
        shared = (shares_columns(step, layout.length, components) for step in steps)
        refreshes = (step.scope.refresh for step in steps)
        upcoming = (Upcoming(*told) for told in zip(forms, refreshes, shared, strict=True))
        return Course(layout.length, tuple(upcoming), tuple(step.plan for step in steps))


def walked(planner: Planner, committing: Callable[[], int]) -> list[Step]:
    """Return the steps of a run of one row, of which each that the logits decide on commits `committing()` positions."""
    steps: list[Step] = []
    quotas = {quota.number: quota for quota in planner.quotas()}
    left = {number: quota.masked[0] for number, quota in quotas.items()}

    def read() -> Facts:
        block = steps[-1].moment.block
        undecided, stop = left[block], steps[-1].block.stop
        return Facts(undecided, made[-1], stop - 1, finished=False, open=max(1, sum(left.values()) + made[-1]))

    made: list[int] = []
    for step in planner.walk(read):
        steps.append(step)
        block = step.moment.block
        planned = quotas[block].counts is not None
        made.append(min(left[block], max(step.counts) if planned else max(1, committing())))
        left[block] -= 0 if step.plan.leads else made[-1]
    return steps


def _number(rate: float, chance: Random) -> int:
    """Return a whole number of at least 1 whose mean is `rate`: one, and as many more as come before a draw says stop."""
    number = 1
    while chance.random() > 1 / rate:
        number += 1
    return number
