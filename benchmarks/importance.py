"""Does importance beat chance? Early skipping pushed until it breaks, with the random scorer always beside it.

    python benchmarks/importance.py tiny-llada --out docs/assets/importance-tiny-llada

The whole answer is one block, so that there is something to choose from; one token is decoded a step. Everything is compared
with the dual cache, which computes the same windows and skips nothing. Prints Markdown tables; writes OUT.json and OUT.png.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from on_suite import measured

from esdllm import Catalogue
from esdllm.measure.evaluation import Contender, Evaluation, Interval, load_suite, of_split, taken
from esdllm.measure.plots import COLORS, new_figure, save_figure

KEEPS = {
    "0.25": "[[0,1],[0.125,0.5],[0.25,0.25]]",
    "0.125": "[[0,1],[0.125,0.25],[0.25,0.125]]",
    "0.06": "[[0,1],[0.125,0.125],[0.25,0.0625]]",
}
REFRESHES = {
    "every 16 steps": "refresh.prompt_refresh=64 refresh.block_refresh=16",
    "never": "refresh.prompt_refresh=999 refresh.block_refresh=999",
}
SHOWN = {
    "every 16 steps": ("hybrid", "random"),
    "never": ("hybrid", "variation", "confidence", "random", "random, nothing raised"),
}
"""the scorers that are compared at each refresh"""
SCORERS = {
    "hybrid": "importance=hybrid",
    "variation": "importance=variation",
    "confidence": "importance=confidence",
    "random": "importance=random",
    "random, nothing raised": "importance=random importance.raised=false",
}
HARDEST = ("0.06", "never")
VARIANTS = {
    **{f"alpha {alpha}": f"importance.alpha={alpha}" for alpha in (0.25, 0.75)},
    **{f"site {site}": f"importance.site={site}" for site in ("query", "key", "value")},
}


def setting(keep: str, refresh: str, scorer: str) -> str:
    """Return a contender's text."""
    return f"es-dllm skip.keep={KEEPS[keep]} {REFRESHES[refresh]} {scorer}"


def grid() -> dict[tuple[str, str, str], str]:
    """Return every (keep, refresh, scorer) and its contender's text."""
    found = {
        (keep, refresh, name): setting(keep, refresh, scorer)
        for refresh in REFRESHES
        for keep in KEEPS
        for name, scorer in SCORERS.items()
        if name in SHOWN[refresh]
    }
    return {**found, **{(*HARDEST, name): setting(*HARDEST, scorer) for name, scorer in VARIANTS.items()}}


def cell(interval: Interval) -> str:
    """Return a loss in points and its interval."""
    return f"{100 * interval.value:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def tables(evaluation: Evaluation, losses: dict[tuple[str, str, str], Interval]) -> str:
    """Return the evaluation as Markdown."""
    score = evaluation.score(evaluation.reference)
    lines = [
        f"{len(evaluation.problems)} problems; the dual cache has {100 * score.value:.1f} % right. "
        "Points lost against it [95 %]:",
        "",
    ]
    for refresh in REFRESHES:
        heads = [f"keep {keep}" for keep in KEEPS]
        lines += [f"| refreshed {refresh} | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
        for name in SHOWN[refresh]:
            lines.append(f"| {name} | {' | '.join(cell(losses[keep, refresh, name]) for keep in KEEPS)} |")
        lines.append("")
    keep, refresh = HARDEST
    lines += [f"| hybrid at keep {keep}, refreshed {refresh} | points lost |", "|---|---|"]
    lines += [f"| {name} | {cell(losses[keep, refresh, name])} |" for name in VARIANTS]
    return "\n".join(lines)


def draw(losses: dict[tuple[str, str, str], Interval], title: str, path: Path) -> None:
    """Draw the loss against the keep ratio, a panel for each refresh."""
    figure = new_figure(10, 4.5)
    panels = figure.subplots(1, len(REFRESHES), sharey=True)
    for axes, refresh in zip(panels, REFRESHES, strict=True):
        for number, name in enumerate(SCORERS):
            if name not in SHOWN[refresh]:
                continue
            found = [losses[keep, refresh, name] for keep in KEEPS]
            middles = [100 * interval.value for interval in found]
            spread = [
                [100 * (interval.value - interval.low) for interval in found],
                [100 * (interval.high - interval.value) for interval in found],
            ]
            places = [place + 0.06 * (number - 2) for place in range(len(KEEPS))]
            axes.errorbar(
                places,
                middles,
                spread,
                fmt="o-",
                color=COLORS[number],
                capsize=2,
                linewidth=1.2,
                markersize=4,
                label=name,
            )
        axes.axhline(0, color="0.6", linewidth=0.8)
        axes.set_xticks(range(len(KEEPS)), list(KEEPS))
        axes.set(title=f"refreshed {refresh}", xlabel="share of positions kept in the deep layers")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("points lost against the dual cache")
    figure.legend(*panels[-1].get_legend_handles_labels(), loc="outside lower center", ncols=len(SCORERS))
    figure.suptitle(title)
    save_figure(figure, path)


def main(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or name.")],
    out: Annotated[Path, typer.Option(help="Where to write, without the ending.")],
    count: Annotated[int, typer.Option(help="Held-out problems of each task.")] = 300,
    task: Annotated[list[str] | None, typer.Option(help="Only these tasks; repeatable.")] = None,
    batch: Annotated[int, typer.Option(help="Prompts decoded together.")] = 100,
    gen_length: Annotated[int, typer.Option(help="Tokens of the answer, and of the one block.")] = 64,
) -> None:
    """Measure what importance is worth on a model and the tiny suite."""
    catalogue = Catalogue.load()
    suite = load_suite("tiny", catalogue)
    problems = taken(of_split(suite.problems(), "test"), count, task or ())
    lengths = [f"gen_length={gen_length}", f"block_length={gen_length}"]
    cells = grid()
    texts = {"dual-cache": None, **{text: key for key, text in cells.items()}}
    contenders = [Contender.of(text, catalogue, sets=lengths) for text in texts]
    evaluation = measured(model, suite, problems, contenders, batch, catalogue, out)
    outcomes = dict(zip(texts.values(), evaluation.outcomes, strict=True))
    losses = {key: evaluation.loss(outcomes[key]) for key in cells}
    draw(losses, f"{model}: {len(problems)} problems", out.with_suffix(".png"))
    print(tables(evaluation, losses))


if __name__ == "__main__":
    typer.run(main)
