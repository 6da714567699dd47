"""The time of a linear layer, in full and in fewer bits, by the number of rows.

    python benchmarks/linear.py [--rounds 7] [--threads 1]

All kinds are called in turns in one process; medians in milliseconds, and how many times as fast as bfloat16 (the median of
the rounds' ratios).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import typer
from torch import Tensor

from esdllm_models.linear.kernels import QUANTIZERS, kernel

SIZES = ((4096, 4096), (12288, 4096))
ROWS = (1, 8, 32, 64, 256, 512)


def layers(outputs: int, inputs: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return a layer of each kind, all of one random weight."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)) * 0.02
    made = {"float32": kernel(None).make(weight, None), "bfloat16": kernel(None).make(weight.bfloat16(), None)}
    return made | {name: kernel(name).make(weight.bfloat16(), None) for name in QUANTIZERS}


def seconds(layer: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Return the time of one call."""
    started = time.perf_counter()
    layer(x)
    return time.perf_counter() - started


def main(rounds: int = 7, threads: int = 1) -> None:
    """Print a table for each size."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        for outputs, inputs in SIZES:
            made = layers(outputs, inputs)
            print(f"\n{inputs} -> {outputs}, {threads} thread(s), {rounds} rounds")
            print(f"{'rows':>5}" + "".join(f"{name:>26}" for name in made))
            for rows in ROWS:
                x = torch.randn(rows, inputs)
                given = {name: x if name == "float32" else x.bfloat16() for name in made}
                for name, layer in made.items():
                    layer(given[name])
                taken = [{name: seconds(layer, given[name]) for name, layer in made.items()} for _ in range(rounds)]
                cells = []
                for name in made:
                    middle = statistics.median(one[name] for one in taken) * 1e3
                    ratio = statistics.median(one["bfloat16"] / one[name] for one in taken)
                    cells.append(f"{middle:14.2f} ms {ratio:7.2f}x")
                print(f"{rows:5}" + "".join(f"{cell:>26}" for cell in cells), flush=True)


if __name__ == "__main__":
    typer.run(main)
