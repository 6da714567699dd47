"""The model card of an exported run: `card.md`, filled in from what the run recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import typer
from batches import BLOCK_LENGTHS, LENGTHS
from curve import read_log
from layouts import LAYOUTS
from model import Size
from problems import SHARES, TASKS, held_out_problems
from train import Place, Recipe

_ADOPTED = """\
- **Begun with:** the weights of [Tiny LLaDA](../llada/README.md), each word's row at the word's new id; the norms of
  queries and keys, which LLaDA lacks, began with the size of what they norm. SDAR itself was made from a model that
  writes from left to right.
- **Blocks:** each batch has blocks of 4, 8, 16, 32 or 64, so that one checkpoint serves all of them
  (`--family sdar,block_size=16`). A row is its clean text and, in line with it, its noised text, each block of which sees
  itself and the clean blocks before it.
"""


class Scores(NamedTuple):
    """What `esdllm eval --json` measured."""

    shares: dict[str, dict[str, float]]
    """by preset and task, the share of right answers"""
    problems: int
    settings: dict[str, Any]
    """the first preset's configuration"""


_WHOLE_WORDS = "a word, or a number from 0 to 99, is one token; everything else falls to bytes, so any text encodes."
_TOKENIZERS = {
    "llada": _WHOLE_WORDS,
    "sdar": _WHOLE_WORDS,
    "dream": "as Qwen2's: a word is one token, a number one token a digit; everything else falls to bytes, so any text\n"
    "  encodes.",
}


def read_scores(path: Path) -> Scores:
    """The scores in a file that `esdllm eval --suite tiny --json` printed."""
    found = json.loads(path.read_text(encoding="utf-8"))
    try:
        contenders = found["contenders"]
        shares = {one["name"]: {task: float(one["tasks"][task]["value"]) for task in TASKS} for one in contenders}
        return Scores(shares, int(found["problems"]), contenders[0]["config"])
    except (KeyError, TypeError, IndexError) as error:
        raise typer.BadParameter(
            f"{path} holds no scores: give what `esdllm eval --suite tiny --json` prints"
        ) from error


def card(state: dict[str, Any], parameters: int, log: Path, scores: Scores | None = None) -> str:
    """The card of a checkpoint (as `Trainer.save` writes it), of its log and, if there are any, of its scores."""
    recipe, place = Recipe(**state["recipe"]), Place(**state["place"])
    rows = [row for row in read_log(log) if row["step"] <= place.step]
    if not rows:
        raise typer.BadParameter(f"{log} holds no loss yet: train for 20 steps at least")
    last = rows[-max(1, len(rows) // 50) :]
    template = (Path(__file__).parent / "card.md").read_text(encoding="utf-8")
    return template.format(
        family=recipe.family,
        title=LAYOUTS[recipe.family].title,
        parameters=parameters / 1e6,
        examples="\n".join(_example(task) for task in TASKS),
        scores=_score_table(scores) if scores else "",
        longest=(BLOCK_LENGTHS if Size(**state["size"]).block_causal else LENGTHS)[-1],
        origin=_origin(recipe),
        size=Size(**state["size"]),
        megabytes=2 * parameters / 1e6,
        tokenizer=_TOKENIZERS[recipe.family],
        recipe=recipe,
        tokens=place.tokens / 1e6,
        budget=recipe.tokens / 1e6,
        steps=place.step,
        hours=place.seconds / 3600,
        depth=_depth(recipe, Size(**state["size"])),
        shares=", ".join(f"{task} {100 * share:g} %" for task, share in recipe.shares.items()),
        last=20 * len(last),
        loss=sum(row["loss"] for row in last) / len(last),
        before=_before(recipe, Size(**state["size"])),
        again=_again(recipe, Size(**state["size"])),
        tables="one table in training, written twice" if Size(**state["size"]).tied else "two tables",
    )


def _example(task: str) -> str:
    """A row of the table of tasks: one of the shorter ones of a few held-out problems, none of which asks who."""
    problems = [problem for problem in held_out_problems(task, 20) if "Who " not in problem.prompt]
    problem = sorted(problems, key=lambda problem: len(problem.prompt + problem.answer))[5]
    answer = " / ".join(f"`{line}`" for line in problem.answer.split("\n"))
    return f"| {task} | `{problem.prompt}` | {answer} |"


def _score_table(scores: Scores) -> str:
    """The section of scores: a row for each task, a column for each preset, means last."""
    shares = scores.shares
    lines = [
        "",
        "## Scores",
        "",
        f"Of {scores.problems} held-out problems (no prompt of which is in the training data), right to the letter, with",
        f"gen_length {scores.settings['gen_length']} and block_length {scores.settings['block_length']} (`esdllm eval`):",
        "",
        f"| task | {' | '.join(f'`{preset}`' for preset in shares)} |",
        f"|---{'|---' * len(shares)}|",
    ]
    rows = {task: [by_task[task] for by_task in shares.values()] for task in TASKS}
    rows["mean"] = [sum(by_task.values()) / len(by_task) for by_task in shares.values()]
    lines += [f"| {task} | {' | '.join(f'{100 * share:.1f} %' for share in row)} |" for task, row in rows.items()]
    return "\n".join([*lines, ""])


def _adopted(recipe: Recipe) -> bool:
    """Whether the first run began with the weights of the LLaDA checkpoint that ships with the package."""
    return "checkpoint" in (_runs(recipe)[0][0].first or {})


def _origin(recipe: Recipe) -> str:
    """What the training began with, as the first sentence says it."""
    return "on from Tiny LLaDA's weights" if _adopted(recipe) else "from nothing"


def _depth(recipe: Recipe, size: Size) -> str:
    """A line on how the model came to its layers."""
    if _adopted(recipe):
        return f"all {size.layers} layers from the first step."
    whose = "that run's" if recipe.first else "the"
    return (
        f"{size.layers // 2} layers for {100 * recipe.grow_at:g} % of {whose} tokens; then a layer that changes nothing yet "
        "was put after each, and all were trained on."
    )


def _runs(recipe: Recipe) -> list[tuple[Recipe, Place | None]]:
    """The runs that a run began with, the first one first, and itself, whose place is None."""
    if not recipe.first or "checkpoint" in recipe.first:
        return [(recipe, None)]
    *before, (began, _) = _runs(Recipe(**recipe.first["recipe"]))
    return [*before, (began, Place(**recipe.first["place"])), (recipe, None)]


def _before(recipe: Recipe, size: Size) -> str:
    """A line on each run that this one began with; nothing if it began from nothing."""
    lines = [_ADOPTED] if _adopted(recipe) else []
    for number, (run, place) in enumerate(_runs(recipe), 1):
        if place is None:
            continue
        left = f" of a budget of {run.tokens / 1e6:g}, then stopped" if place.tokens < run.tokens else ""
        done = f"{place.tokens / 1e6:.1f} million tokens{left}, {place.seconds / 3600:.1f} hours"
        told = f"{done}, by `{_command(run, size, number)}`"
        lines.append(f"- **Before:** {told}; the next run began with its averaged weights.\n")
    if recipe.family == "dream" and recipe.first:
        lines.append("- **Digits:** the second run put waves of their value into the digits' embeddings.\n")
    return "".join(lines)


def _again(recipe: Recipe, size: Size) -> str:
    """The command that makes the last run again."""
    return _command(recipe, size, len(_runs(recipe)), f"runs/{recipe.family}")


def _command(recipe: Recipe, size: Size, number: int, out: str = "") -> str:
    """The command of the run of a number, counted from 1."""
    begun = "models/esdllm_models/tiny/llada" if _adopted(recipe) else ""
    start = f" --start {begun if number == 1 else f'runs/{number - 1}'}" if number > 1 or begun else ""
    options = _options(recipe, size)
    return f"python tools/train_tiny/train.py {recipe.family} --out {out or f'runs/{number}'}{start} {options}"


def _options(recipe: Recipe, size: Size) -> str:
    """The options of `train.py` that make this run again, beside the family and the folders."""
    usual = Recipe(recipe.family, recipe.tokens)
    names = ("batch_tokens", "matrix_rate", "other_rate", "seed")
    changed = [name for name in names if getattr(recipe, name) != getattr(usual, name)]
    options = ["--no-tied"] * (not size.tied) + ["--digits"] * recipe.digits
    options += [f"--{name.replace('_', '-')} {getattr(recipe, name)}" for name in ("tokens", *changed)]
    options += [f"--share {task}={share}" for task, share in recipe.shares.items() if share != SHARES.get(task)]
    return " ".join(options)
