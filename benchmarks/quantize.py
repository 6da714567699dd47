"""What each kernel of linear layers costs: right answers, and tokens that agree with float32's, on held-out problems.

    python benchmarks/quantize.py [--model tiny-llada] [--preset es-dllm] [--count 200] [--batch 50]

`--count` is of each task of the suite. Agreement is the mean share of an answer's tokens that float32 has at the same place.
"""

from __future__ import annotations

from functools import partial

import torch
import typer

from esdllm import Catalogue, load_model
from esdllm.checkpoints.loading import describe_weights
from esdllm.cli.progress import CountingBar
from esdllm.cli.shared import stderr
from esdllm.measure.evaluation import Contender, difference, evaluate, load_suite, of_split, share, taken

KINDS = (
    ("float32", {}),
    ("float32", {"compute": "pieces"}),
    ("float32", {"compute": "fp16"}),
    ("bfloat16", {"compute": "plain"}),
    ("bfloat16", {"compute": "packed"}),
    ("bfloat16", {"compute": "pieces"}),
    ("bfloat16", {"compute": "fp16"}),
    ("float32", {"quantize": "int8"}),
    ("bfloat16", {"quantize": "int8"}),
    ("bfloat16", {"quantize": "int8-weight-only"}),
    ("bfloat16", {"quantize": "int4-weight-only"}),
)
"""The dtype, and what else `load_model` is told; the first is what the others are compared with."""


def main(
    model: str = "tiny-llada", preset: str = "es-dllm", suite: str = "tiny", count: int = 200, batch: int = 50
) -> None:
    """Print a row for each kernel."""
    catalogue = Catalogue.load()
    chosen = load_suite(suite, catalogue)
    problems = taken(of_split(chosen.problems(), "test"), count or None)
    contender = Contender.of(preset, catalogue, chosen.settings)
    print(f"{model}, {preset}, {len(problems)} problems of {suite}, batches of {batch}, torch {torch.__version__}")
    print(f"{'dtype':10}{'kernel':18}{'weights':>9}{'right':>8}{'95 %':>16}{'less than float32':>26}{'agreement':>11}")
    outcomes = []
    for dtype, held in KINDS:
        kernel = "".join(held.values())
        told = describe_weights(model, dtype, held.get("quantize"), catalogue, compute=held.get("compute"))
        if told.problems:
            print(f"{dtype:10}{kernel:18}{'; '.join(told.problems)}", flush=True)
            continue
        loaded = load_model(model, "cpu", dtype, catalogue, **held)
        with CountingBar(stderr()) as bar:
            task = bar.add_task(f"{dtype} {kernel}", total=len(problems))
            advance = partial(bar.advance, task)
            evaluation = evaluate(
                loaded,
                chosen,
                problems,
                [contender],
                names=(model, suite, "test"),
                batch_size=batch,
                progress=lambda name, done, advance=advance: advance(done),
            )
        outcomes.append(evaluation.outcomes[0])
        first, last = outcomes[0], outcomes[-1]
        right, loss = share(last.right), difference(first.right, last.right)
        interval = f"{100 * right.low:.1f} to {100 * right.high:.1f}"
        less = f"{100 * loss.value:.1f} ({100 * loss.low:.1f} to {100 * loss.high:.1f})"
        agree = 100 * last.agreement_with(first)
        print(
            f"{dtype:10}{kernel:18}{told.bytes / 1e6:7.1f}MB{100 * right.value:8.1f}{interval:>16}{less:>26}{agree:11.2f}",
            flush=True,
        )


if __name__ == "__main__":
    typer.run(main)
