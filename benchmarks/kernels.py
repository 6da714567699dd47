"""What each of the CPU's kernels and the kept memory gain in a step, and where a skip step's time went before and after.

    python benchmarks/kernels.py steps [--batch 8] [--keep]
    python benchmarks/kernels.py top
    python benchmarks/kernels.py reading

Geometry `small` with random weights in bfloat16, prompt 704, 64 tokens in one block. A variant is the weights' layout
(plain, packed) and the attention backend; all take turns in one process. `--keep` lets the process keep freed memory, as the
command `esdllm` does.
"""

from __future__ import annotations

import statistics
import time
from typing import Annotated

import attrs
import torch
import typer
from torch.profiler import ProfilerActivity

from esdllm import Catalogue, Model
from esdllm.measure.benchmarking import Setting, contenders_named, geometry
from esdllm.measure.benchmarking.runners import EngineRunner
from esdllm.runtime.allocator import keep_freed_memory
from esdllm_models.linear.packed import Packed

VARIANTS = (("plain", "sdpa"), ("packed", "sdpa"), ("plain", "matmul"), ("packed", "matmul"))
PROMPT, LENGTHS = 704, ["gen_length=64", "block_length=64"]
SHOWN = 12  # of the profiler's entries

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def models(setting: Setting, catalogue: Catalogue) -> dict[str, Model]:
    """Return the same model with its weights plain and packed."""
    return {name: attrs.evolve(setting, compute=name).load(catalogue) for name in ("plain", "packed")}


def runners(batch: int, preset: str, threads: int) -> dict[tuple[str, str], EngineRunner]:
    """Return what decodes, by variant."""
    catalogue = Catalogue.load()
    setting = Setting(
        "small", geometry("small", catalogue), PROMPT, batch, "cpu", "bfloat16", threads=threads, sample=3
    )
    loaded = models(setting, catalogue)
    found = {}
    for layout, attention in VARIANTS:
        contender = contenders_named([f"{preset} attention={attention}"], catalogue, LENGTHS)[0]
        model = loaded[layout]
        found[layout, attention] = EngineRunner.of(contender, model, setting.prompts(model), catalogue, setting.sample)
    return found


@app.command()
def steps(batch: int = 1, keep: bool = False, rounds: int = 5, threads: int = 2) -> None:
    """Print the median milliseconds of a vanilla step and of a skip step, by variant."""
    torch.set_num_threads(threads)
    if keep:
        print("freed memory is kept:", keep_freed_memory())
    for preset, kind in (("vanilla", "refresh"), ("es-dllm", "skip")):
        made = runners(batch, preset, threads)
        taken: dict[tuple[str, str], list[float]] = {variant: [] for variant in made}
        for turn in range(rounds + 1):
            for variant, one in made.items():
                times = [1e3 * step.seconds for step in one.run().steps if step.kind == kind]
                if turn:  # the first run warms up
                    taken[variant] += times
        for (layout, attention), times in taken.items():
            print(f"batch {batch}, {preset} ({kind}): {layout} weights, {attention}: {statistics.median(times):.1f} ms")


@app.command()
def top(threads: Annotated[int, typer.Option(help="That torch uses.")] = 2) -> None:
    """Print the profiler's top entries of a run of es-dllm's steps, before and after."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    made = runners(1, "es-dllm", threads)
    for variant in (VARIANTS[0], VARIANTS[-1]):
        one = made[variant]
        one.run()
        with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
            count = len(one.run().steps)
        found = sorted(profiler.key_averages(), key=lambda entry: -entry.self_cpu_time_total)
        total = sum(entry.self_cpu_time_total for entry in found)
        print(f"{variant[0]} weights, {variant[1]}: {total / 1e3:.0f} ms in {count} steps")
        for entry in found[:SHOWN]:
            print(
                f"  {entry.key:48} {entry.self_cpu_time_total / 1e3:8.1f} ms {100 * entry.self_cpu_time_total / total:5.1f} %"
            )


@app.command()
def reading(threads: int = 1, rounds: int = 41) -> None:
    """Print how long a packed matrix takes that a processor's cache holds, and one that comes from memory."""
    torch.set_num_threads(threads)
    inputs, outputs, draw = 1024, 6144, torch.Generator().manual_seed(0)
    weights = [Packed.of(torch.randn(outputs, inputs, generator=draw).bfloat16()) for _ in range(32)]
    with torch.inference_mode():
        for rows in (16, 32, 64, 128):
            x, taken = torch.randn(1, rows, inputs, generator=draw).bfloat16(), []
            for several in (weights[:1], weights):  # 32 of them are more than any cache holds
                times = []
                for turn in range(rounds):
                    started = time.perf_counter()
                    several[turn % len(several)](x)
                    times.append(1e3 * (time.perf_counter() - started))
                taken.append(statistics.median(times))
            print(
                f"{rows} rows, {inputs} -> {outputs}: from the cache {taken[0]:.2f} ms, from memory {taken[1]:.2f} ms"
            )


if __name__ == "__main__":
    app()
