"""Writes the shipped suite of held-out problems: `python tools/train_tiny/suite.py`.

One JSON object per line: `task`, `split`, `prompt`, `answer`. The first 200 problems of each task are to tune
decoding on (`tune`), the last 300 to report scores on (`test`); none of them is ever trained on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from problems import TASKS, held_out_problems

SUITE = Path(__file__).parents[2] / "models" / "esdllm_models" / "tiny" / "problems.jsonl"
TUNE, COUNT = 200, 500
"""Problems of each task: those to tune on, all of them."""


def suite_lines() -> list[str]:
    """The lines of the file, the same ones every time."""
    found = [(place, problem) for task in TASKS for place, problem in enumerate(held_out_problems(task, COUNT))]
    rows = [
        {"task": one.task, "split": "tune" if place < TUNE else "test", "prompt": one.prompt, "answer": one.answer}
        for place, one in found
    ]
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def main(to: Annotated[Path, typer.Option(help="File to write.")] = SUITE) -> None:
    """Write the held-out problems of all tasks as JSON lines."""
    to.write_text("\n".join(suite_lines()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
