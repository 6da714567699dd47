"""Suites: problems with one right answer, from a plugin or from a file of JSON lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from esdllm.config import ComponentConfig
from esdllm.errors import ConfigError, InputError, known
from esdllm.interfaces import Suite
from esdllm.plugins.catalogue import Catalogue
from esdllm.use.jsonl import sound_json_lines
from esdllm.views import Problem

__all__ = ["JsonlSuite", "Split", "load_suite", "of_split", "taken"]

Split = Literal["tune", "test", "all"]
_EXAMPLE = '{"prompt": "Sort 3 1 2.", "answer": "1 2 3"}'


@attrs.frozen
class JsonlSuite:
    """The problems of a file of JSON lines: "prompt", "answer", and if wanted "task" and "split"; right is what is equal."""

    path: Path = attrs.field(converter=Path, metadata={"help": "file of JSON lines"})

    @property
    def settings(self) -> Mapping[str, Any]:
        """A file suggests none."""
        return {}

    def problems(self) -> Sequence[Problem]:
        """Return the file's problems.

        Raises:
            InputError: the file cannot be read, or a line is no problem; names the line.
        """
        return read_problems(self.path)

    def correct(self, problem: Problem, answer: str) -> bool:
        """Return whether the answer is the right one, white space around it aside."""
        return answer.strip() == problem.answer.strip()


def read_problems(path: Path) -> list[Problem]:
    """Return the problems of a file of JSON lines.

    Raises:
        InputError: the file cannot be read or is empty, or a line is no problem; names the line.
    """
    found = [_problem(read, where) for where, read in sound_json_lines(path, "problems", _EXAMPLE)]
    if not found:
        raise InputError(f"{path} holds no problem; write one object per line, such as {_EXAMPLE}")
    return found


def _problem(read: Mapping[str, Any], where: str) -> Problem:
    for key in ("prompt", "answer"):
        if key not in read:
            raise InputError(f"{where} has no '{key}'; its keys are {', '.join(map(str, read)) or 'none'}")
    values = {key: read[key] for key in ("prompt", "answer", "task", "split") if key in read}
    for key, value in values.items():
        if not isinstance(value, str):
            raise InputError(f"{where}: '{key}' is {value!r}, where a text is needed")
    if not values["prompt"].strip():
        raise InputError(f"{where}: 'prompt' is {values['prompt']!r}; give the model something to answer")
    if values.get("split", "") not in ("", "tune", "test"):
        raise InputError(f"{where}: 'split' is {values['split']!r}; write 'tune' or 'test', or leave it out")
    return Problem(**values)


def load_suite(name: str, catalogue: Catalogue) -> Suite:
    """Return the suite that a plugin offers under a name, or that of a file of JSON lines.

    Raises:
        ConfigError: neither; names the suites there are.
    """
    names, path = catalogue.names("suite"), Path(name).expanduser()
    if name not in names:
        if path.is_file() or path.suffix in (".jsonl", ".json") or len(path.parts) > 1:
            return JsonlSuite(path)
        raise ConfigError(f"unknown suite '{name}', and no such file of JSON lines; {known(name, names)}")
    suite: Suite = catalogue.build("suite", ComponentConfig(name))
    return suite


def of_split(problems: Sequence[Problem], split: Split) -> list[Problem]:
    """Return the problems of a split.

    Where no problem names one, "test" are all of them; "tune" has no meaning then.

    Raises:
        InputError: there are none.
    """
    unsaid = all(not problem.split for problem in problems)
    if split == "all" or (unsaid and split == "test"):
        return list(problems)
    found = [problem for problem in problems if problem.split == split]
    if not found:
        raise InputError(f'no problem is of the split \'{split}\'; write "split": "{split}" in the lines that are')
    return found


def taken(problems: Sequence[Problem], count: int | None, tasks: Sequence[str] = ()) -> list[Problem]:
    """Return the first `count` problems of each task, all if None, in their order; only those of `tasks` if any is named.

    Raises:
        InputError: a task that has no problem.
    """
    there = {problem.task for problem in problems}
    for task in tasks:
        if task not in there:
            raise InputError(f"no problem is of the task '{task}'; {known(task, there)}")
    seen: dict[str, int] = {}
    found = []
    for problem in problems:
        seen[problem.task] = seen.get(problem.task, 0) + 1
        if (not tasks or problem.task in tasks) and (count is None or seen[problem.task] <= count):
            found.append(problem)
    return found
