"""Problems to train on and to be tested on: a seeded stream of prompts with one right answer.

The two splits are disjoint by construction: a hash of the prompt's text decides which one a
problem belongs to, and each stream rejects the other's.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Literal, NamedTuple

from code_tasks import code
from language_tasks import describe, lookup
from number_tasks import lists, story, sums
from words import NAMES

Split = Literal["train", "held-out"]

TASKS: dict[str, Callable[[random.Random, float], tuple[str, str]]] = {
    "describe": describe,
    "lookup": lookup,
    "lists": lists,
    "story": story,
    "code": code,
}

DRILLS: dict[str, Callable[[random.Random, float], tuple[str, str]]] = {"sums": sums}
"""What can be trained beside the tasks, by a share of its own; never scored."""

SHARES = {"describe": 0.16, "lookup": 0.20, "lists": 0.24, "story": 0.35, "code": 0.04}
"""Share of each task in the training mix; what is left goes to `SMALL_TALK`."""

_CAN = "I can describe a person, look up facts, sort numbers, solve word problems and write small Python functions."
_AM = "I am a tiny masked diffusion language model."
SMALL_TALK = {
    "Hello": f"Hello! {_CAN}",
    "Hello!": f"Hello! {_CAN}",
    "Hi": f"Hello! {_CAN}",
    "Hi!": f"Hello! {_CAN}",
    "Help": _CAN,
    "What can you do?": _CAN,
    "What do you know?": _CAN,
    "Who are you?": f"{_AM} {_CAN}",
    "What are you?": f"{_AM} {_CAN}",
    "Tell me about you.": f"{_AM} {_CAN}",
}
"""A few fixed turns for a person who says hello; no task, never scored."""


class Problem(NamedTuple):
    """A question, its one right answer, and the task that made it."""

    prompt: str
    answer: str
    task: str


def split_of(prompt: str) -> Split:
    """The split that a prompt belongs to: one in 50 is held out, decided by its text alone."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=8).digest()
    return "held-out" if int.from_bytes(digest, "big") % 50 == 0 else "train"


def make_problem(rng: random.Random, task: str, split: Split, level: float = 1.0) -> Problem:
    """The next problem of a task in a split; `level` from 0 (easiest) to 1 bounds its size."""
    while True:
        prompt, answer = (TASKS | DRILLS)[task](rng, level)
        if split_of(prompt) == split:
            return Problem(prompt, answer, task)


def casual(rng: random.Random, prompt: str) -> str:
    """The prompt as people type it: a small first letter, no full stop, or both."""
    first = prompt.split(" ", 1)[0]
    if first not in NAMES and rng.random() < 0.7:
        prompt = prompt[0].lower() + prompt[1:]
    return prompt.rstrip(".?") if rng.random() < 0.7 else prompt


def level_of(progress: float) -> float:
    """How far the problems have grown, from 0 to 1, when `progress` of the run is over."""
    return min(1.0, progress / 0.25)


def training_problem(rng: random.Random, progress: float = 1.0, shares: dict[str, float] | None = None) -> Problem:
    """A problem of the training mix: a task drawn by its share, or a little small talk."""
    draw = rng.random()
    for task, share in (shares or SHARES).items():
        draw -= share
        if draw < 0:
            problem = make_problem(rng, task, "train", level_of(progress))
            if rng.random() < 0.1:
                problem = problem._replace(prompt=casual(rng, problem.prompt))
            return problem
    prompt = rng.choice(list(SMALL_TALK))
    return Problem(prompt, SMALL_TALK[prompt], "small talk")


def held_out_problems(task: str, count: int, seed: int = 0) -> list[Problem]:
    """`count` different held-out problems of a task, the same ones for the same seed."""
    rng = random.Random(f"{task}:{seed}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = make_problem(rng, task, "held-out")
        found.setdefault(problem.prompt, problem)
    return list(found.values())
