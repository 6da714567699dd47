"""Every first-party policy on a checkpoint: quality, forwards, computation and speed against vanilla, in one run.

    python benchmarks/policies.py tiny-llada --out docs/assets/policies-tiny-llada

Each section changes one thing; the two of refreshes do so where it matters (`HARD`). Prints Markdown tables; writes OUT.json
and OUT.png, in which the drift controller stands against fixed intervals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from on_suite import measured

from esdllm import Catalogue
from esdllm.measure.evaluation import ONE_BATCH, Contender, Evaluation, Outcome, load_suite, of_split, taken
from esdllm.measure.plots import COLORS, new_figure, save_figure

HARD = "block_length=64 skip.keep=[[0,1],[0.125,0.125],[0.25,0.0625]]"
"""the answer in one block, of which deep layers keep a sixteenth: here it matters when caches are refreshed"""
FIXED = {
    f"periodic, {prompt}/{block}": (prompt, block)
    for prompt, block in ((16, 4), (32, 8), (64, 16), (128, 32), (512, 512))
}
MIX = '{name="mix",parts=[{name="variation",weight=0.7},{name="random",weight=0.3}]}'
SECTIONS: dict[str, dict[str, str]] = {
    "modes": {name: name for name in ("vanilla", "prefix-cache", "dual-cache", "es-dllm")},
    "importance": {
        "hybrid": "es-dllm",
        "confidence": "es-dllm importance=confidence",
        "variation": "es-dllm importance=variation",
        "entropy, unsure first": "es-dllm importance=entropy",
        "entropy, sure first": "es-dllm importance=entropy importance.prefer=sure",
        "random": "es-dllm importance=random",
        "mix of variation and random": f"es-dllm importance={MIX}",
    },
    "skip": {
        "by-depth": "es-dllm",
        "decay, linear": "es-dllm skip=decay",
        "decay, cosine": "es-dllm skip=decay skip.shape=cosine",
        "budget 0.25": "es-dllm skip=budget skip.budget=0.25",
        "adaptive, with threshold": "es-dllm-parallel skip=adaptive",
    },
    "refresh, fixed": {
        name: f"es-dllm {HARD} refresh.prompt_refresh={prompt} refresh.block_refresh={block}"
        for name, (prompt, block) in FIXED.items()
    },
    "refresh, by drift": {
        f"drift, {tolerance}": f"es-dllm {HARD} refresh=drift refresh.tolerance={tolerance}"
        for tolerance in (0.05, 0.1, 0.2, 0.4, 0.8)
    },
    "refresh, other": {
        "on-commit, 8": "es-dllm refresh=on-commit delay_eos=false",
        "partial": "es-dllm refresh=partial refresh.prompt_refresh=16",
        "delayed": "dual-cache refresh=delayed",
    },
    "unmasking": {
        "threshold": "es-dllm-parallel",
        "factor": "es-dllm unmasking=factor",
        "entropy-bound": "es-dllm unmasking=entropy-bound",
        "klass": "es-dllm unmasking=klass",
        "credit": "es-dllm unmasking=credit",
        "longest-prefix": "es-dllm unmasking=longest-prefix",
        "wino": "es-dllm unmasking=wino",
        "prophet": "es-dllm unmasking=prophet",
        "threshold at wino's 0.6": "es-dllm-parallel unmasking.threshold=0.6",
    },
    "blocks": {
        "sliding": "es-dllm blocks=sliding",
        "sliding, with threshold": "es-dllm-parallel blocks=sliding",
        "own, with threshold": "es-dllm-parallel blocks=own",
        "pruned to 16": "es-dllm blocks=pruned blocks.window=16",
        "vanilla, pruned to 16": "vanilla blocks=pruned blocks.window=16",
    },
    "stores": {
        "sparse": "es-dllm cache=sparse",
        "int8": "es-dllm cache=int8",
    },
}


def row(name: str, evaluation: Evaluation, outcome: Outcome) -> str:
    """Return one line of a table."""
    score, loss, speedup = evaluation.score(outcome), evaluation.loss(outcome), evaluation.speedup(outcome)
    return (
        f"| {name} | {100 * score.value:.1f} | {100 * loss.value:+.1f} [{100 * loss.low:+.1f}, {100 * loss.high:+.1f}] "
        f"| {outcome.forwards_per_answer:.1f} | {100 * evaluation.compute_share(outcome):.1f} % "
        f"| {outcome.tokens_per_second:.0f} | {f'{speedup.value:.1f}' if speedup else ONE_BATCH} |"
    )


def tables(evaluation: Evaluation, found: dict[str, Outcome]) -> str:
    """Return the evaluation as Markdown."""
    lines = [
        f"{len(evaluation.problems)} problems, batches of {evaluation.batch_size}. Loss in points against vanilla [95 %].",
        "",
    ]
    for section, contenders in SECTIONS.items():
        lines += [
            f"| {section} | right, % | loss | forwards | computation | tokens/s | speed-up |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [row(name, evaluation, found[text]) for name, text in contenders.items()]
        lines.append("")
    return "\n".join(lines)


def draw(evaluation: Evaluation, found: dict[str, Outcome], title: str, path: Path) -> None:
    """Draw right answers against computation, the drift controller beside fixed intervals."""
    figure = new_figure(7, 4.5)
    axes = figure.subplots()
    for number, section in enumerate(("refresh, fixed", "refresh, by drift")):
        outcomes = [found[text] for text in SECTIONS[section].values()]
        shares = [100 * evaluation.compute_share(outcome) for outcome in outcomes]
        scores = [evaluation.score(outcome) for outcome in outcomes]
        middles = [100 * score.value for score in scores]
        spread = [[100 * (s.value - s.low) for s in scores], [100 * (s.high - s.value) for s in scores]]
        axes.errorbar(shares, middles, spread, fmt="o-", color=COLORS[number], capsize=2, linewidth=1.2, label=section)
        for name, x, y in zip(SECTIONS[section], shares, middles, strict=True):
            place = {"xytext": (4, 5 - 15 * number), "fontsize": 8, "color": COLORS[number]}
            axes.annotate(name.split(", ")[1], (x, y), textcoords="offset points", **place)
    axes.axhline(100 * evaluation.score(evaluation.reference).value, color="0.6", linewidth=0.8, label="vanilla")
    axes.set(xlabel="computation, % of vanilla's", ylabel="right answers, %", title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    save_figure(figure, path)


def main(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or name.")],
    out: Annotated[Path, typer.Option(help="Where to write, without the ending.")],
    count: Annotated[int, typer.Option(help="Held-out problems of each task.")] = 60,
    batch: Annotated[int, typer.Option(help="Prompts decoded together.")] = 50,
    section: Annotated[list[str] | None, typer.Option(help="Only these sections; repeatable.")] = None,
) -> None:
    """Measure the first-party policies on a model and the tiny suite."""
    for name in set(SECTIONS).difference(section or SECTIONS):
        del SECTIONS[name]
    catalogue = Catalogue.load()
    suite = load_suite("tiny", catalogue)
    problems = taken(of_split(suite.problems(), "test"), count, ())
    texts = list(dict.fromkeys(["vanilla", *(text for texts in SECTIONS.values() for text in texts.values())]))
    contenders = [Contender.of(text, catalogue, settings=suite.settings) for text in texts]
    evaluation = measured(model, suite, problems, contenders, batch, catalogue, out)
    found = dict(zip(texts, evaluation.outcomes, strict=True))
    if {"refresh, fixed", "refresh, by drift"} <= set(SECTIONS):
        draw(evaluation, found, f"{model}: {len(problems)} problems", out.with_suffix(".png"))
    print(tables(evaluation, found))


if __name__ == "__main__":
    typer.run(main)
