"""Draws what early skipping computes, from one run for each preset: the pictures of the page "How it works".

    python benchmarks/canvas.py
    python benchmarks/canvas.py --model tiny-dream --prompt "What is 12 + 7?" --out docs/assets

A cache store, `recorded`, sees which positions come to each layer; a step observer sees what each step commits. Nothing is
worked out from the plan.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import attrs
import torch
import typer
from torch import Tensor

from esdllm import (
    Cache,
    CacheShape,
    CacheStore,
    CacheWrite,
    Catalogue,
    Engine,
    KeyValue,
    Memory,
    Model,
    ModelSpec,
    Phase,
    Site,
    StepPlan,
    StepRecord,
    hookimpl,
    load_model,
)
from esdllm.measure.plots import COLORS, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PRESETS = ("vanilla", "dual-cache", "es-dllm")


@attrs.frozen
class RecordedStore:
    """Another store, and which positions come to each of its layers."""

    of: CacheStore = attrs.field(default="dense", metadata={"kind": "cache", "help": "the store that is recorded"})

    @property
    def persistent(self) -> bool:
        """The other's."""
        return self.of.persistent

    def problems(self, shape: CacheShape) -> list[str]:
        """Return the other's."""
        return self.of.problems(shape)

    def phase(self, step_in_block: int) -> Phase:
        """Return the other's."""
        return self.of.phase(step_in_block)

    def memory(self, shape: CacheShape) -> Memory:
        """Return the other's, and a byte for each layer and position."""
        memory = self.of.memory(shape)
        return attrs.evolve(memory, device=memory.device + shape.n_layers * shape.length)

    def allocate(self, shape: CacheShape) -> RecordedCache:
        """Return an empty cache."""
        return RecordedCache(self.of.allocate(shape), shape)


class RecordedCache:
    """Another cache, and the positions that the first row computed since `take`."""

    def __init__(self, of: Cache, shape: CacheShape) -> None:
        self._of = of
        self._computed = torch.zeros(shape.n_layers, shape.length, dtype=torch.bool, device=shape.device)

    def take(self) -> Tensor:
        """Return (layers, L) bool, whether each layer computed each position, and forget it."""
        taken = self._computed.cpu().clone()
        self._computed.zero_()
        return taken

    def reset(self) -> None:
        """Forget everything."""
        self._of.reset()
        self._computed.zero_()

    def update(self, write: CacheWrite) -> KeyValue:
        """Record the positions; hand the write on."""
        self._computed[write.layer].index_fill_(0, write.positions[0], True)
        return self._of.update(write)

    def recall(self, layer: int, site: Site, positions: Tensor) -> Tensor:
        """Return the other's."""
        return self._of.recall(layer, site, positions)

    def remember(self, layer: int, positions: Tensor, x: Tensor) -> None:
        """Hand it on."""
        self._of.remember(layer, positions, x)


@hookimpl
def esdllm_cache_stores() -> dict[str, type[RecordedStore]]:
    """Offer the store as `cache = "recorded"`."""
    return {"recorded": RecordedStore}


class Row(NamedTuple):
    """One step."""

    computed: Tensor
    """(layers, L) bool, whether a layer computed a position"""
    committed: Tensor
    """(L,) bool"""
    plan: StepPlan
    block: range


class Steps:
    """A step observer that keeps what each step computed and committed."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self._shift = engine, 0
        self.rows: list[Row] = []

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Take the model's logit shift."""
        self._shift = spec.logit_shift

    def step(self, record: StepRecord) -> None:
        """Keep one step; commits by computed position, as the cache counts."""
        cache: Any = self._engine.cache
        committed = record.committed[0].roll(-self._shift)
        self.rows.append(Row(cache.take(), committed, record.plan, range(*record.block)))

    def end(self) -> None:
        """Nothing is left to do."""


def decode(model: Model, preset: str, prompt: str, catalogue: Catalogue, sets: list[str]) -> Steps:
    """Return the steps of one run."""
    config = catalogue.configure(preset, sets=["cache=recorded", *sets])
    engine = Engine.build(model, config, catalogue)
    steps = Steps(engine)
    result = engine.generate(prompt, chat=model.chats(None), observers=[steps])
    print(f"{preset}: {result.steps} steps, {result.layer_share:.1%} of vanilla's layer work: {result.text}")
    return steps


def draw_runs(runs: dict[str, Steps], path: Path) -> None:
    """Draw positions by steps, one panel per run; the darker, the more layers computed the position."""
    figure = new_figure(11, 4.6)
    axes = figure.subplots(1, len(runs), sharey=True)
    for axis, (preset, run) in zip(axes, runs.items(), strict=True):
        depth = torch.stack([row.computed.sum(0) for row in run.rows])
        image = axis.imshow(depth.numpy(), cmap="Blues", vmin=0, vmax=len(run.rows[0].computed), aspect="auto")
        _mark(axis, run, torch.stack([row.committed for row in run.rows]))
        share = depth.sum() / (depth.shape[0] * depth.shape[1] * len(run.rows[0].computed))
        axis.set_title(f"{preset}: {share:.0%} computed", fontsize=10)
        axis.set_xlabel("position")
    axes[0].set_ylabel("denoising step")
    axes[0].legend(loc="lower left", fontsize=8, framealpha=0.9)
    figure.colorbar(image, ax=axes, label="layers that computed it", shrink=0.8)
    save_figure(figure, path)


def _mark(axis: Axes, run: Steps, committed: Tensor) -> None:
    """Put a dot where a step commits, and lines at the prompt's end and between blocks."""
    step, position = committed.numpy().nonzero()
    axis.scatter(position, step, s=9, color=COLORS[1], label="committed")
    for edge in sorted({row.block.start for row in run.rows}):
        axis.axvline(edge - 0.5, color="black", linewidth=0.8, linestyle=":")


def draw_step(run: Steps, path: Path) -> None:
    """Draw layers by positions of the block, for the first step that skips once three steps were made."""
    index = next(i for i, row in enumerate(run.rows) if row.plan.skips and i >= 3)
    row = run.rows[index]
    figure = new_figure(7, 3.6)
    axis = figure.subplots()
    computed = row.computed[:, row.block.start : row.block.stop].int()
    axis.imshow(computed.numpy(), cmap="Blues", vmin=0, vmax=1.4, aspect="auto", interpolation="nearest")
    n_layers, width = computed.shape
    axis.set_xticks(range(width), [str(position) for position in row.block], fontsize=8)
    axis.set_xticks([edge - 0.5 for edge in range(width + 1)], minor=True)
    axis.set_yticks([edge - 0.5 for edge in range(n_layers + 1)], minor=True)
    axis.grid(which="minor", color="white", linewidth=1)
    axis.tick_params(which="minor", length=0)
    for layer in row.plan.scored:
        axis.axhline(layer + 0.5, color=COLORS[1], linewidth=1.5)
    (position,) = row.committed[row.block.start : row.block.stop].numpy().nonzero()
    axis.scatter(position, [n_layers - 1] * len(position), s=30, color=COLORS[1], zorder=3)
    axis.set_xlabel(f"position of the block, at step {index}")
    axis.set_ylabel("layer")
    save_figure(figure, path)


def main(
    model: str = "tiny-llada",
    prompt: str = "Sort these numbers: 31, 4, 15.",
    sets: Annotated[list[str] | None, typer.Option("--set", help="Settings of all runs, repeatable.")] = None,
    out: Path = Path("docs/assets"),
    threads: int = 1,
) -> None:
    """Decode one prompt with each preset and draw what was computed."""
    torch.set_num_threads(threads)
    catalogue = Catalogue.load({"recorded": sys.modules[__name__]})
    loaded = load_model(model, "cpu", catalogue=catalogue)
    common = sets or ["gen_length=32", "block_length=16", "early_stop=false"]
    extra = {"es-dllm": ["refresh.block_refresh=8"]} if sets is None else {}
    runs = {name: decode(loaded, name, prompt, catalogue, [*common, *extra.get(name, [])]) for name in PRESETS}
    draw_runs(runs, out / f"canvas-{Path(model).name}.png")
    draw_step(runs["es-dllm"], out / f"canvas-{Path(model).name}-step.png")


if __name__ == "__main__":
    typer.run(main)
