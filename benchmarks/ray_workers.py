"""Rows per second of one, two and four workers of a Ray cluster: `python benchmarks/ray_workers.py`. Needs `esdllm[ray]`.

The cluster is on this machine, a node of one processor for each worker; workers compute with one thread each. Runs are made in
turns. A run counts from its first batch to its last, so that neither the start of processes nor the loading of the model counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from ray.cluster_utils import Cluster

from esdllm import Catalogue, configure
from esdllm.serving.ray import RayWorkers
from esdllm.use.batching import BatchRun, Progress, Setup

COUNTS = (1, 2, 4)
SLOTS = 8
QUESTIONS = ("Who are you?", "What is 12 + 7?", "Sort these numbers from small to large: 31, 4, 15.")


def rate(folder: Path, setup: Setup, address: str, workers: int) -> float:
    """Return the rows per second of one run."""
    told: list[tuple[float, int]] = []

    def watch(progress: Progress) -> None:
        told.append((time.perf_counter(), progress.prompts))

    run = BatchRun(
        folder / "prompts.jsonl",
        folder / "answers.jsonl",
        setup,
        SLOTS,
        elsewhere=RayWorkers(setup, SLOTS, address, workers),
    )
    run(Catalogue.load(), restart=True, watch=watch)
    (began, first), (ended, last) = told[1], told[-1]
    return (last - first) / (ended - began)


def measure(rows: int, rounds: int, address: str) -> dict[int, list[float]]:
    """Return the rates of all rounds, by the number of workers."""
    setup = Setup("tiny-llada", configure("es-dllm", settings={"gen_length": 64}).to_dict(), "cpu")
    rates: dict[int, list[float]] = {count: [] for count in COUNTS}
    with TemporaryDirectory() as room:
        folder = Path(room)
        lines = [json.dumps({"prompt": QUESTIONS[i % len(QUESTIONS)]}) for i in range(rows)]
        (folder / "prompts.jsonl").write_text("\n".join(lines), encoding="utf-8")
        for _ in range(rounds):
            for count in COUNTS:
                rates[count].append(rate(folder, setup, address, count))
    return rates


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the medians, and what each is of one worker's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=640, help="prompts of a run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each number of workers")
    asked = parser.parse_args(arguments)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(max(COUNTS)):
            cluster.add_node(num_cpus=1)
        rates = measure(asked.rows, asked.rounds, cluster.address)
    finally:
        cluster.shutdown()
    one = statistics.median(rates[1])
    for count, found in rates.items():
        middle = statistics.median(found)
        told = ", ".join(f"{value:.2f}" for value in found)
        print(f"{count} workers: {middle:.2f} rows per second ({told}), {middle / one:.2f} of one worker's")


if __name__ == "__main__":
    main()
