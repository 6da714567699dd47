"""Writes the pictures of the page "What changes between steps" and prints its tables as Markdown.

    python benchmarks/phenomenon.py
    python benchmarks/phenomenon.py --count 50 --out docs/assets > tables.md

Prompts are problems of a suite's test split, spread evenly over it; the answers do not matter, only how they are decoded.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from esdllm import Catalogue, Engine, load_model
from esdllm.measure.analysis import analyze
from esdllm.measure.analysis.plots import draw
from esdllm.measure.analysis.tables import markdown, tables
from esdllm.measure.evaluation import load_suite, of_split


def main(
    model: Annotated[list[str] | None, typer.Option(help="Checkpoints, repeatable.")] = None,
    suite: str = "tiny",
    preset: str = "vanilla",
    count: Annotated[int, typer.Option(help="Prompts.")] = 50,
    batch: int = 8,
    early_stop: Annotated[bool, typer.Option(help="Measure a prompt only until its answer is complete.")] = True,
    out: Path = Path("docs/assets"),
    threads: int = 1,
) -> None:
    """Analyze each model on the same prompts."""
    torch.set_num_threads(threads)
    catalogue = Catalogue.load()
    chosen = load_suite(suite, catalogue)
    problems = of_split(chosen.problems(), "test")
    prompts = [problem.prompt for problem in problems[:: max(1, len(problems) // count)][:count]]
    config = catalogue.configure(preset, settings={**chosen.settings, "early_stop": early_stop})
    for name in model or ("tiny-llada", "tiny-dream"):
        loaded = load_model(name, "cpu", catalogue=catalogue)
        engine = Engine.build(loaded, config, catalogue)
        chat = loaded.codec is not None and loaded.codec.has_chat
        found = analyze(engine, prompts, chat=chat, batch=batch, watch=partial(_progress, name))
        draw(found, out, prefix=f"phenomenon-{Path(name).name}-")
        told = {"model": name, "preset": preset, "config": config.to_dict(), **found.to_dict()}
        (out / f"phenomenon-{Path(name).name}.json").write_text(json.dumps(told) + "\n", encoding="utf-8")
        print(f"### `{name}`: {found.prompts} prompts, {found.pairs} pairs of steps, preset `{preset}`\n")
        print("\n\n".join(map(markdown, tables(found))), end="\n\n", flush=True)


def _progress(name: str, stage: str, share: float) -> None:
    print(f"\r{name}: {stage} {share:4.0%}   ", end="\n" if share >= 1 else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
