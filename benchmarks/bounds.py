"""How loose the bounds on skipping are, and what share of a run's commits is certified.

    python benchmarks/bounds.py tiny-llada --out docs/assets

Decodes problems of the tiny suite's test split, spread evenly over it, one by one. Prints Markdown tables and draws
OUT/bounds-MODEL.png.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor

from esdllm import Catalogue, Engine, Model, ModelSpec, StepRecord, load_model
from esdllm.measure.evaluation import load_suite, of_split
from esdllm.measure.plots import COLORS, new_figure, save_figure
from esdllm.runtime.plain import layers
from esdllm.testing.bounds import attention_bound, attention_drift
from esdllm.testing.bounds.certified import Certified, Commit, Shares, read_cache

STALENESS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""shares of the real drift of keys and values at which the bound is worked out"""
SMALLEST = 1e-5
"""drift of an attention output, below which it is float32's rounding"""


class Heads:
    """An observer of single prompts: by how much the bounds on one head exceed what its stale keys and values really do."""

    def __init__(self, engine: Engine) -> None:
        self.engine, spec = engine, engine.model.spec
        self.by_set: list[list[float]] = [[] for _ in range(spec.n_layers)]
        """by layer, bound / drift of `attention_bound`"""
        self.by_key: list[list[float]] = [[] for _ in range(spec.n_layers)]
        """of `attention_drift`"""

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Take the canvas."""
        self.before = tokens.clone()

    def step(self, record: StepRecord) -> None:
        """Compare at the positions that a skip step committed; both passes have the exact query."""
        if record.plan.skips:
            model, shift = self.engine.model.adapter, self.engine.model.spec.logit_shift
            decided = record.committed[0].nonzero()[:, 0] - shift
            positions = torch.arange(self.before.shape[1])[None]
            cached = read_cache(self.engine, *self.before.shape)
            for layer, (_, made) in enumerate(layers(model, model.embed(self.before), positions)):
                exact = [x[0].double() for x in made]
                self._compare(layer, exact[0][decided], exact[1:], [x[0].double() for x in cached[layer]])
        self.before = record.tokens.clone()

    def _compare(self, layer: int, queries: Tensor, exact: list[Tensor], read: list[Tensor]) -> None:
        scale, repeat = queries.shape[-1] ** -0.5, queries.shape[1] // read[0].shape[1]
        for head in range(queries.shape[1]):
            query, group = queries[:, head], head // repeat
            (keys, values), (true_keys, true_values) = ([x[:, group] for x in side] for side in (read, exact))
            key_drift, value_drift = (keys - true_keys).norm(dim=1), (values - true_values).norm(dim=1)
            weights = (scale * query @ keys.T).softmax(-1)
            output, length = weights @ values, query.norm(dim=1)
            off = ((scale * query @ true_keys.T).softmax(-1) @ true_values - output).norm(dim=1)
            stale, diameter = (key_drift > 0) | (value_drift > 0), torch.cdist(values, values).amax()
            mass = weights[:, stale].sum(1)
            by_set = attention_bound(mass, key_drift.amax(), value_drift.amax(), length, diameter, scale)
            distance, key_part = torch.cdist(output, values), scale * length[:, None] * key_drift
            by_key = attention_drift(weights, distance, diameter, value_drift.expand(weights.shape), key_part).whole
            for drift, first, second in zip(off.tolist(), by_set.tolist(), by_key.tolist(), strict=True):
                if drift > SMALLEST:
                    self.by_set[layer].append(first / drift)
                    self.by_key[layer].append(second / drift)

    def end(self) -> None:
        """Nothing is left to do."""


def quantiles(x: list[float]) -> tuple[float, float, float]:
    """Return the 10 %, 50 % and 90 % quantiles."""
    low, middle, high = torch.tensor(x, dtype=torch.float64).quantile(
        torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    )
    return float(low), float(middle), float(high)


def row(name: str, shares: Shares) -> str:
    """Return shares as a line of a table."""
    return f"| {name} | {shares.commits} | " + " | ".join(f"{100 * share:.1f} %" for share in shares[1:]) + " |"


def tables(model: str, certified: Certified, heads: Heads, scaled: dict[float, list[Commit]]) -> str:
    """Return all that was found as Markdown."""
    skipped = [commit for commit in certified.commits if commit.skipped]
    lines = [
        f"### {model}",
        "",
        "| | number | same token | drift < gap / 2 | bound < gap / 2 |",
        "|---|---|---|---|---|",
    ]
    lines += [row("commits", certified.shares()), row("commits of skip steps", certified.shares(skipped=True))]
    lines += [
        row("steps", certified.step_shares()),
        "",
        "| commits of skip steps | 10 % | median | 90 % |",
        "|---|---|---|---|",
    ]
    named = {
        "gap": [commit.gap for commit in skipped],
        "drift": [commit.drift for commit in skipped],
        "drift / (gap / 2)": [2 * commit.drift / commit.gap for commit in skipped],
        "bound": [commit.bound for commit in skipped],
    }
    lines += [f"| {name} | " + " | ".join(f"{x:.3g}" for x in quantiles(found)) + " |" for name, found in named.items()]
    lines += ["", "| bound / drift of one head | 10 % | median | 90 % |", "|---|---|---|---|"]
    for name, by_layer in (("`attention_bound`", heads.by_set), ("`attention_drift`", heads.by_key)):
        found = quantiles([ratio for layer in by_layer for ratio in layer])
        lines.append(f"| {name} | " + " | ".join(f"{x:.3g}" for x in found) + " |")
    lines += ["", "| share of the real staleness | drift | bound | bound < gap / 2 |", "|---|---|---|---|"]
    for share, commits in scaled.items():
        drift, bound = (median(x) for x in zip(*((commit.drift, commit.bound) for commit in commits), strict=True))
        holds = sum(commit.bounded for commit in commits) / len(commits)
        lines.append(f"| {share:g} | {drift:.3g} | {bound:.3g} | {100 * holds:.1f} % |")
    return "\n".join(lines)


def draw(model: str, heads: Heads, scaled: dict[float, list[Commit]], path: Path) -> None:
    """Draw the bound on the logits against the staleness, and the looseness of one head by layer."""
    figure = new_figure(10, 4.2)
    left, right = figure.subplots(1, 2)
    gap = median(commit.gap / 2 for commit in scaled[1.0])
    for number, what in enumerate(("bound", "drift")):
        found = [quantiles([getattr(commit, what) for commit in commits]) for commits in scaled.values()]
        low, middle, high = zip(*found, strict=True)
        left.plot(list(scaled), middle, "o-", color=COLORS[number], label=what, markersize=4)
        left.fill_between(list(scaled), low, high, color=COLORS[number], alpha=0.2, linewidth=0)
    left.axhline(gap, color="0.4", linewidth=1, linestyle="--", label="half the gap, median")
    left.set(xscale="log", yscale="log", xlabel="share of the real staleness", ylabel="largest difference of a logit")
    for number, (name, by_layer) in enumerate((("attention_bound", heads.by_set), ("attention_drift", heads.by_key))):
        there = [layer for layer, ratios in enumerate(by_layer) if ratios]
        low, middle, high = zip(*(quantiles(by_layer[layer]) for layer in there), strict=True)
        right.plot(there, middle, "o-", color=COLORS[number + 2], label=name, markersize=4)
        right.fill_between(there, low, high, color=COLORS[number + 2], alpha=0.2, linewidth=0)
    right.set(yscale="log", xlabel="layer", ylabel="bound / drift of one head's output")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(f"{model}: commits of skip steps; median, and 10 % to 90 %")
    save_figure(figure, path)


def decode(
    engine: Engine, model: Model, prompts: list[str], observers: list[Certified | Heads], console: Console
) -> None:
    """Decode prompts one by one."""
    chat = model.codec is not None and model.codec.has_chat
    for prompt in track(prompts, description=f"{len(observers)} observers", console=console):
        engine.generate([prompt], chat=chat, observers=observers)


def main(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or name.")],
    out: Annotated[Path, typer.Option(help="Folder of the picture.")] = Path("docs/assets"),
    preset: str = "es-dllm",
    count: Annotated[int, typer.Option(help="Problems.")] = 20,
    scaled: Annotated[int, typer.Option(help="Problems of whose first block the staleness is scaled as well.")] = 2,
    threads: int = 1,
) -> None:
    """Certify a model's commits on the tiny suite."""
    torch.set_num_threads(threads)
    catalogue, console = Catalogue.load(), Console(stderr=True)
    suite = load_suite("tiny", catalogue)
    problems = of_split(suite.problems(), "test")
    prompts = [problem.prompt for problem in problems[:: max(1, len(problems) // count)][:count]]
    loaded = load_model(model, "cpu", "float32", catalogue=catalogue)
    engine = Engine.build(loaded, catalogue.configure(preset, settings=dict(suite.settings)), catalogue)
    certified, heads = Certified(engine), Heads(engine)
    decode(engine, loaded, prompts, [certified, heads], console)
    short = {**suite.settings, "gen_length": suite.settings["block_length"]}
    brief = Engine.build(loaded, catalogue.configure(preset, settings=short), catalogue)
    less = [Certified(brief, staleness=share) for share in STALENESS]
    decode(brief, loaded, prompts[:: max(1, count // scaled)][:scaled], list(less), console)
    found = {one.staleness: [commit for commit in one.commits if commit.skipped] for one in less}
    draw(Path(model).name, heads, found, out / f"bounds-{Path(model).name}.png")
    print(tables(Path(model).name, certified, heads, found))


if __name__ == "__main__":
    typer.run(main)
