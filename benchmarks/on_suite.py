"""What the benchmarks of quality share: contenders on held-out problems of the tiny suite, and their evaluation in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from esdllm import Catalogue, Problem, Suite, load_model
from esdllm.measure.evaluation import Contender, Evaluation, evaluate


def measured(
    model: str,
    suite: Suite,
    problems: Sequence[Problem],
    contenders: Sequence[Contender],
    batch: int,
    catalogue: Catalogue,
    out: Path,
    family: str | None = None,
    warm_up: bool = True,
) -> Evaluation:
    """Return a model's evaluation, with a bar meanwhile; it is in OUT.json too.

    `family` is as for `load_model`, `warm_up` as for `evaluate`.
    """
    with Progress(console=Console(stderr=True)) as bar:
        shown = bar.add_task("decoding", total=len(problems) * len(contenders))
        evaluation = evaluate(
            load_model(model, catalogue=catalogue, family=family),
            suite,
            problems,
            contenders,
            names=(model, "tiny", "test"),
            batch_size=batch,
            warm_up=warm_up,
            catalogue=catalogue,
            progress=lambda _, done: bar.advance(shown, done),
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(evaluation.to_dict(), indent=1) + "\n", encoding="utf-8")
    return evaluation
