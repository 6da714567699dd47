"""How far the simulator is off: the same traffic before a session here, and before slots that are arithmetic.

    python benchmarks/simulated.py --geometry tiny --requests 40 --slots 4

Steps of this machine are measured first (`measured_steps`), and times fitted to them; then each load is served for real and
simulated with those times. What is printed is the real number, the simulated one, and by how much that is off.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from esdllm import Catalogue, DecodeConfig, Engine
from esdllm.checkpoints.loading import describe_weights, random_model
from esdllm.measure.benchmarking import geometry
from esdllm.measure.benchmarking.serving import Lengths, Load, ServeRun, Wanted, bench_engine, drawn
from esdllm.measure.benchmarking.serving.report import STATIC
from esdllm.measure.cost import Roofline
from esdllm.measure.simulating import (
    Courses,
    Pricing,
    Simulated,
    Simulation,
    SlotReplica,
    StaticReplica,
    StepSeconds,
    WantedLengths,
    fitted,
    measured_steps,
)
from esdllm.serving.scheduler import Scheduler

ROWS = (1, 2, 4, 8)
"""rows whose steps are measured, as far as there are slots"""


def main() -> None:
    """Measure, simulate, print."""
    asked = _parsed()
    torch.set_num_threads(asked.threads)
    catalogue = Catalogue.load()
    described = geometry(asked.geometry, catalogue)
    engine = Engine.build(
        random_model(described, "cpu", torch.float32, catalogue), _config(asked.preset, catalogue), catalogue
    )
    weights = describe_weights(described, "float32", None, catalogue).bytes
    spec = engine.model.spec
    prompts, answers = Lengths.parse(asked.prompt_tokens), Lengths.parse(asked.answer_tokens)
    counted = Pricing.of(engine.components, spec, 4, weights, StepSeconds(Roofline(1.0)))
    rows = [number for number in ROWS if number <= asked.slots]
    times = fitted(measured_steps(engine, counted, (prompts.low, prompts.high), rows))
    print(f"{asked.geometry}, {asked.preset}, {asked.slots} slots, {asked.threads} threads; fitted: {times}")
    pricing = Pricing.of(engine.components, spec, 4, weights, times)
    wanted = drawn(asked.requests, prompts, answers, spec.vocab, asked.seed, spec.mask_id)
    loads = [Load(concurrency=asked.requests), Load(concurrency=asked.slots), *(Load(rate=rate) for rate in asked.rate)]
    for load in loads:
        real = bench_engine(
            engine, [load], wanted, slots=asked.slots, static=True, seed=asked.seed, catalogue=catalogue
        )
        for run in real:
            _print(run, _simulated(engine, pricing, load, wanted, asked, run.target == STATIC))


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", default="tiny")
    parser.add_argument("--preset", default="es-dllm")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--prompt-tokens", default="16:64")
    parser.add_argument("--answer-tokens", default="16:64")
    parser.add_argument(
        "--rate", type=float, action="append", default=[], help="requests per second; may be given again"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _config(preset: str, catalogue: Catalogue) -> DecodeConfig:
    return catalogue.configure(preset, settings={"gen_length": 32, "block_length": 16, "early_stop": False})


def _simulated(
    engine: Engine, pricing: Pricing, load: Load, wanted: Sequence[Wanted], asked: argparse.Namespace, static: bool
) -> Simulated:
    """Return what comes of the same requests at the same times."""
    lengths = [WantedLengths(len(one.prompt), one.max_tokens) for one in wanted]
    courses = Courses(engine.components, engine.model.spec)
    slots, queue = asked.slots, asked.requests
    replica = (
        StaticReplica(slots, queue, courses, pricing)
        if static
        else SlotReplica(Scheduler(slots=slots, max_queue=queue), courses, pricing)
    )
    return Simulation(load, lengths, seed=asked.seed).run("simulated", [replica], slots)


def _print(real: ServeRun, simulated: Simulated) -> None:
    """Print a line for each number."""
    print(f"\n{real.load.name}, {real.target}")
    numbers = {
        "tokens per second": (real.tokens_a_second, simulated.throughput),
        "rows per step": (real.rows_a_step, simulated.width),
    }
    for part in ("p50", "p95"):
        numbers[f"latency {part}, s"] = getattr(real.latency, part), getattr(simulated.latency, part)
    for name, (one, other) in numbers.items():
        if one is not None and other is not None:
            print(f"  {name:16} {one:10.4g} {other:10.4g} {100 * (other / one - 1):+6.1f} %")


if __name__ == "__main__":
    main()
