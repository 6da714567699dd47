"""Exact match on held-out problems, through the package: `evaluate.py models/.../tiny/llada`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from problems import TASKS, Problem, held_out_problems
from rich.console import Console
from rich.table import Table

import esdllm


def answers(engine: esdllm.Engine, problems: list[Problem], batch: int) -> list[str]:
    """What the engine answers to each problem's prompt, as a chat."""
    found: list[str] = []
    for first in range(0, len(problems), batch):
        prompts = [problem.prompt for problem in problems[first : first + batch]]
        text = engine.generate(prompts, chat=True).text
        assert text is not None, "the checkpoint has no tokenizer"
        found += text
    return found


def main(
    folder: Annotated[str, typer.Argument(help="Folder or name of the checkpoint.")],
    preset: Annotated[list[str] | None, typer.Option(help="Decoding mode; may be repeated.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="A setting over it.")] = None,
    count: Annotated[int, typer.Option(help="Held-out problems of each task.")] = 200,
    gen_length: Annotated[int, typer.Option(help="Tokens to generate.")] = 64,
    block_length: Annotated[int, typer.Option(help="Tokens of a block.")] = 32,
    batch: Annotated[int, typer.Option(help="Prompts decoded together.")] = 50,
    show: Annotated[int, typer.Option(help="Wrong answers to print of each task.")] = 0,
    log: Annotated[Path | None, typer.Option(help="File for the wrong answers.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Print the share of right answers of each task under each preset (default: vanilla)."""
    torch.set_num_threads(threads)
    model = esdllm.load_model(folder)
    presets = preset or ["vanilla"]
    table = Table("task", *presets)
    shares: dict[str, list[float]] = {task: [] for task in TASKS}
    wrong: list[str] = []
    for name in presets:
        settings = {"gen_length": gen_length, "block_length": block_length}
        config = esdllm.Catalogue.load().configure(name, settings=settings, sets=sets or ())
        engine = esdllm.Engine.build(model, config)
        for task in TASKS:
            problems = held_out_problems(task, count)
            pairs = list(zip(problems, answers(engine, problems, batch), strict=True))
            missed = [(problem, text) for problem, text in pairs if text != problem.answer]
            shares[task].append(1 - len(missed) / count)
            lines = [f"{name} {task}\n? {p.prompt}\n= {p.answer}\n! {text}" for p, text in missed]
            wrong += lines
            for line in lines[:show]:
                print(line)
    for task, row in shares.items():
        table.add_row(task, *(f"{share:.1%}" for share in row))
    means = [sum(column) / len(TASKS) for column in zip(*shares.values(), strict=True)]
    table.add_row("all", *(f"{mean:.1%}" for mean in means))
    Console().print(table)
    if log:
        log.write_text("\n".join(wrong) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
