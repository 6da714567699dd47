"""What cache stores take, what they cost, and what the lossy one changes.

    python benchmarks/stores.py memory           # predicted for LLaDA-8B's canvas; predicted and measured for a smaller one
    python benchmarks/stores.py speed            # a step's time on the tiny model, each store's against dense
    python benchmarks/stores.py error            # int8's relative error and the tokens that it leaves as they are

Measured memory is the growth of the process, a process for each store: what the kernel counts as resident, at most.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import attrs
import torch
import typer

from esdllm import CacheShape, CacheStore, CacheWrite, Catalogue, ComponentConfig, Engine, Model, Phase, load_model
from esdllm.measure.evaluation import load_suite
from esdllm.measure.evaluation.statistics import agreement
from esdllm.plan import Layout
from esdllm.runtime.components import Components
from esdllm.runtime.plain import layers

STORES = ("none", "dense", "sparse", "int8", "offloaded", "disk")
LAYERS, HEADS, DIM, BLOCK = 32, 32, 128, 64
app = typer.Typer(add_completion=False, no_args_is_help=True)


def shape(rows: int, length: int) -> CacheShape:
    """Return what LLaDA-8B's run under es-dllm asks a store to hold."""
    catalogue = Catalogue.load()
    components = Components.resolve(catalogue.configure("es-dllm", settings={"block_length": BLOCK}), catalogue)
    remembered = components.planner(Layout.of(length - 256, 256, 0, rows), LAYERS).skip_layers()
    return CacheShape(rows, length, LAYERS, HEADS, DIM, HEADS * DIM, remembered, torch.bfloat16, torch.device("cpu"))


def store(name: str) -> CacheStore:
    """Return a store by name."""
    found: CacheStore = Catalogue.load().build("cache", ComponentConfig(name))
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table in Markdown, each row when it is there."""
    for line in chain([head, ["---"] * len(head)], rows):
        print(f"| {' | '.join(line)} |", flush=True)


def gb(count: int) -> str:
    """Return bytes as GB."""
    return f"{count / 1e9:.2f}"


@app.command()
def memory(rows: int = 8, length: int = 4096, small_rows: int = 2, small_length: int = 1024) -> None:
    """Print what each store takes on a large canvas, and what it takes and was seen to take on a small one."""
    large, small = shape(rows, length), shape(small_rows, small_length)
    for each in (large, small):
        print(
            f"\n{each.rows} x {each.length} positions, {LAYERS} layers, {HEADS} heads of {DIM}, bfloat16, "
            f"remembered at layers {', '.join(map(str, each.remembered))}; GB\n"
        )
        if each is large:
            rows_of = ((name, *map(gb, attrs.astuple(store(name).memory(each)))) for name in STORES)
            table(("store", "device", "host", "disk"), rows_of)
        else:
            table(
                ("store", "predicted memory", "measured", "predicted disk", "measured"),
                map(measured, STORES, [each] * 6),
            )


def measured(name: str, small: CacheShape) -> tuple[str, ...]:
    """Return a row: what was predicted and what a process of its own found."""
    command = [sys.executable, __file__, "fill", name, str(small.rows), str(small.length)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    taken = store(name).memory(small)
    return name, gb(taken.device + taken.host), gb(found["memory"]), gb(taken.disk), gb(found["disk"])


@app.command(hidden=True)
def fill(name: str, rows: int, length: int) -> None:
    """Allocate a cache, write every position block by block, and print the process's growth as JSON."""
    found = shape(rows, length)
    numbers = torch.ones(3, rows, BLOCK, HEADS, DIM, dtype=found.dtype)
    walk(store(name), attrs.evolve(found, length=BLOCK, n_layers=3, remembered=()), numbers)  # what is set up once
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    before, disk = status("VmRSS"), walk(store(name), found, numbers)
    print(json.dumps({"memory": status("VmHWM") - before, "disk": disk}))


def walk(made: CacheStore, found: CacheShape, numbers: torch.Tensor) -> int:
    """Write a cache full, and return what its file takes on the disk."""
    cache = made.allocate(found)
    cache.reset()
    for start in range(0, found.length, BLOCK):
        positions = torch.arange(start, start + BLOCK).expand(found.rows, -1)
        for layer in range(found.n_layers):
            read = cache.update(CacheWrite(layer, positions, *numbers, None, positions, made.phase(start // BLOCK)))
            del read
            if layer in found.remembered and made.persistent:
                cache.remember(layer, positions, numbers[0].flatten(2))
    files = [link.stat() for link in Path("/proc/self/fd").iterdir() if deleted(link)]
    return sum(file.st_blocks * 512 for file in files)


def deleted(link: Path) -> bool:
    """Return whether a descriptor is of a file without a name."""
    try:
        return link.readlink().name.endswith("(deleted)")
    except OSError:
        return False


def status(key: str) -> int:
    """Return a number of bytes that the kernel keeps of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def engines(model: Model, catalogue: Catalogue, names: Iterable[str], over: Mapping[str, Any]) -> dict[str, Engine]:
    """Return an engine for each store under es-dllm."""
    made = {}
    for name in names:
        config = catalogue.configure("es-dllm", settings={**over, "cache": name})
        made[name] = Engine.build(model, config, catalogue)
    return made


@app.command()
def speed(model: str = "tiny-llada", prompts: int = 4, rounds: int = 7, threads: int = 1) -> None:
    """Print a step's time with each store, in turns, and the median of its ratios to dense; on one thread unless told."""
    torch.set_num_threads(threads)
    catalogue = Catalogue.load()
    loaded = load_model(model, "cpu", catalogue=catalogue)
    texts = [problem.prompt for problem in load_suite("tiny", catalogue).problems()[:prompts]]
    over = {"gen_length": 64, "block_length": 16, "early_stop": False}
    made = engines(loaded, catalogue, [name for name in STORES if name != "none"], over)
    taken: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(rounds + 1):
        for name, engine in made.items():
            result = engine.generate(texts, chat=True)
            if turn:  # the first warms up
                taken[name].append(1e3 * result.seconds / result.steps)
    print(f"{model}, {prompts} prompts, 64 tokens in blocks of 16, es-dllm, {threads} thread, {rounds} rounds\n")
    rows = []
    for name, times in taken.items():
        ratios = [mine / dense for mine, dense in zip(times, taken["dense"], strict=True)]
        rows.append((name, f"{statistics.median(times):.2f}", f"{statistics.median(ratios):.2f}", spread(ratios)))
    table(("store", "ms per step", "times dense", "least to most"), rows)


def spread(numbers: Iterable[float]) -> str:
    """Return the smallest and largest of some numbers."""
    numbers = sorted(numbers)
    return f"{numbers[0]:.2f} to {numbers[-1]:.2f}"


@app.command()
def error(model: str = "tiny-llada", prompts: int = 40) -> None:
    """Print the relative error of what int8 holds, over the canvases that dense decodes, and how far its answers agree."""
    catalogue = Catalogue.load()
    loaded = load_model(model, "cpu", catalogue=catalogue)
    problems = load_suite("tiny", catalogue).problems()
    texts = [problem.prompt for problem in problems[:: len(problems) // prompts][:prompts]]
    found = {}
    for name, engine in engines(loaded, catalogue, ("dense", "int8"), {"gen_length": 64, "block_length": 16}).items():
        found[name] = [engine.generate([text], chat=True) for text in texts]
    off: dict[str, list[list[float]]] = {"keys": [], "values": [], "hidden": []}
    with torch.inference_mode():
        for result in found["dense"]:
            compare(loaded, result.tokens, off)
    dtype = str(loaded.adapter.dtype).removeprefix("torch.")
    print(f"{model} in {dtype}, {prompts} problems, 64 tokens in blocks of 16, es-dllm\n")
    means = {name: [statistics.mean(layer) for layer in zip(*canvases, strict=True)] for name, canvases in off.items()}
    rows = [(name, f"{statistics.mean(each):.2%}", f"{max(each):.2%}") for name, each in means.items()]
    table(("int8 holds", "relative error", "in the worst layer"), rows)
    pairs = [(mine.answers[0], other.answers[0]) for mine, other in zip(found["int8"], found["dense"], strict=True)]
    same = statistics.mean(agreement(*pair) for pair in pairs)
    print(f"\nanswers that are dense's: {sum(a == b for a, b in pairs)} of {prompts}; tokens that are: {same:.1%}")


def compare(model: Model, tokens: torch.Tensor, off: dict[str, list[list[float]]]) -> None:
    """Add, layer by layer, the root-mean-square error of what int8 gives back of a canvas (1, L), over that of the tensor."""
    spec, adapter = model.spec, model.adapter
    positions = torch.arange(tokens.shape[1]).unsqueeze(0)
    every = tuple(range(spec.n_layers))
    shape = CacheShape(
        1,
        tokens.shape[1],
        len(every),
        spec.n_kv_heads,
        spec.head_dim,
        spec.hidden,
        every,
        adapter.dtype,
        adapter.device,
    )
    cache, found = store("int8").allocate(shape), {name: [] for name in off}
    for layer, (hidden, made) in enumerate(layers(adapter, adapter.embed(tokens), positions)):
        read = cache.update(CacheWrite(layer, positions, *made, None, positions, Phase.ALL))
        cache.remember(layer, positions, hidden)
        back = cache.recall(layer, "hidden", positions)
        for name, (mine, exact) in {
            "keys": (read.keys, made.keys),
            "values": (read.values, made.values),
            "hidden": (back, hidden),
        }.items():
            found[name].append(float((mine - exact).float().norm() / exact.float().norm()))
    for name, by_layer in found.items():
        off[name].append(by_layer)


if __name__ == "__main__":
    app()
