"""Scores a run's checkpoint while it trains: `python tools/train_tiny/checkup.py --run DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from decoding import check_up
from dialects import DIALECTS
from export import load_average


def main(
    run: Annotated[Path, typer.Option(help="Folder of the run, with its `checkpoint.pt`.")],
    count: Annotated[int, typer.Option(help="Held-out problems of each task.")] = 50,
    block_length: Annotated[int, typer.Option(help="Block length of the canvas of 64.")] = 32,
    show: Annotated[int, typer.Option(help="Wrong answers to print of each task.")] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Print the exact match of each task and a few of the wrong answers."""
    torch.set_num_threads(threads)
    model, tokenizer, state = load_average(run)
    print(f"step {state['place']['step']}, {state['place']['tokens'] / 1e6:.1f}M tokens")
    scores, wrong = check_up(model, tokenizer, DIALECTS[state["family"]], count, block_length=block_length)
    print({task: f"{score:.1%}" for task, score in scores.items()})
    print(f"all {sum(scores.values()) / len(scores):.1%}")
    for prompt, answer, text in wrong[:: max(1, len(wrong) // max(1, 5 * show))][: 5 * show]:
        print(f"? {prompt}\n= {answer}\n! {text}")


if __name__ == "__main__":
    typer.run(main)
