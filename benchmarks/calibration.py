"""What do the probabilities of `Pipeline.choose` mean? How often an option of probability p is right, on held-out problems.

    python benchmarks/calibration.py tiny-llada --out docs/assets/calibration-tiny-llada

Each problem of the shipped suite's test split has four options: its answer, and three in which one number, or one word that the
question names, is another. Of the question's words some are dropped, so that the model cannot know every answer. Options are
weighed from one forward, and by the bound. Prints a Markdown table; writes OUT.json and OUT.png.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from esdllm import Pipeline, Problem
from esdllm.measure.evaluation import load_suite, of_split, taken
from esdllm.measure.plots import COLORS, new_figure, save_figure
from esdllm.plugins.catalogue import Catalogue

BINS = 10


class Weighed(NamedTuple):
    """An option, and what it was given."""

    probability: float
    right: bool


def options_of(problem: Problem, problems: Sequence[Problem], draw: random.Random) -> list[str]:
    """Return the answer of a problem and three others, the answer first; fewer if there are no more."""
    words = {*re.findall(r"\w+", problem.prompt)}
    places = [found.span() for found in re.finditer(r"\w+", problem.answer) if found[0] in words or found[0].isdigit()]
    others = [word for other in problems if other.task == problem.task for word in re.findall(r"\w+", other.prompt)]
    found = [problem.answer]
    for _ in range(200):
        if len(found) == 4 or not places:
            break
        start, stop = draw.choice(places)
        old = problem.answer[start:stop]
        new = str(max(0, int(old) + draw.choice((-2, -1, 1, 2)))) if old.isdigit() else draw.choice(others)
        changed = problem.answer[:start] + new + problem.answer[stop:]
        if new[:1].isupper() is old[:1].isupper() and new.isdigit() is old.isdigit() and changed not in found:
            found.append(changed)
    return found


def weighed(pipe: Pipeline, problems: Sequence[Problem], samples: int | None, drop: float) -> list[Weighed]:
    """Return every option of every problem, of whose question each word is dropped with the probability `drop`."""
    draw, found = random.Random(0), []
    for problem in problems:
        options = options_of(problem, problems, draw)
        if len(options) > 1:
            question = " ".join(word for word in problem.prompt.split(" ") if draw.random() >= drop) or "?"
            probabilities = pipe.choose(question, options, samples=samples).probabilities
            found += [Weighed(each, at == 0) for at, each in enumerate(probabilities)]
    return found


def bins(options: Sequence[Weighed]) -> list[list[Weighed]]:
    """Return options of like probability together."""
    found: list[list[Weighed]] = [[] for _ in range(BINS)]
    for option in options:
        found[min(BINS - 1, int(option.probability * BINS))].append(option)
    return found


def share(options: Sequence[Weighed]) -> tuple[float, float]:
    """Return the mean probability of options, and how many of them are right."""
    return (
        sum(option.probability for option in options) / len(options),
        sum(option.right for option in options) / len(options),
    )


def error(options: Sequence[Weighed]) -> float:
    """Return the expected calibration error: the mean distance of a bin's two shares, each bin counting by its options."""
    total = 0.0
    for each in filter(None, bins(options)):
        probability, right = share(each)
        total += abs(probability - right) * len(each)
    return total / len(options)


def main(
    model: Annotated[str, typer.Argument(help="A checkpoint.")] = "tiny-llada",
    out: Annotated[Path, typer.Option(help="Where to write, without the ending.")] = Path("calibration"),
    count: Annotated[int, typer.Option(help="Problems of each task.")] = 60,
    samples: Annotated[int, typer.Option(help="Mask sets of the bound.")] = 16,
    drop: Annotated[float, typer.Option(help="Share of the question's words that are dropped.")] = 0.3,
) -> None:
    """Weigh the options, and tell how often each was right."""
    pipe = Pipeline.from_pretrained(model)
    problems = taken(of_split(load_suite("tiny", Catalogue.load()).problems(), "test"), count)
    measured = {
        "one forward": weighed(pipe, problems, None, drop),
        f"bound, {samples} sets": weighed(pipe, problems, samples, drop),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    told = {name: [tuple(option) for option in options] for name, options in measured.items()}
    out.with_suffix(".json").write_text(json.dumps(told) + "\n", encoding="utf-8")
    figure = new_figure(4.5, 4)
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
    print(f"{len(problems)} problems\n")
    print("| probability | " + " | ".join(measured) + " |\n|---|" + "---|" * len(measured))
    table = {name: bins(options) for name, options in measured.items()}
    for at in range(BINS):
        cells = [f"{share(each[at])[1]:.2f} of {len(each[at])}" if each[at] else "" for each in table.values()]
        print(f"| {at / BINS:g} to {(at + 1) / BINS:g} | {' | '.join(cells)} |")
    print(
        "| expected calibration error | " + " | ".join(f"{error(options):.3f}" for options in measured.values()) + " |"
    )
    for (name, each), color in zip(table.items(), COLORS, strict=False):
        axes.plot(*zip(*map(share, filter(None, each)), strict=True), marker="o", color=color, label=name)
    axes.set_xlabel("probability of an option")
    axes.set_ylabel("share that is right")
    axes.legend(frameon=False)
    save_figure(figure, out.with_suffix(".png"))


if __name__ == "__main__":
    typer.run(main)
