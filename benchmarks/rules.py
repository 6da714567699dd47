"""Decoding rules under each cache: quality, tokens per forward, computation and time, and whether rule and skipping multiply.

    python benchmarks/rules.py tiny-llada --out rules-tiny-llada

Prints a Markdown table, and writes OUT.json. A rule and early skipping multiply where the share of the computation that both
leave is the product of what each leaves of the dual cache's: the last column is how many times that product it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from on_suite import measured

from esdllm import Catalogue
from esdllm.measure.evaluation import ONE_BATCH, Contender, Evaluation, Outcome, load_suite, of_split, taken

CACHES = ("vanilla", "dual-cache", "es-dllm")
RULES = {
    "one per step": "",
    "threshold": "unmasking=threshold",
    "frechet-profile": "unmasking=frechet-profile",
    "local-leap": "unmasking=local-leap",
    "hierarchical": "unmasking=hierarchical",
    "hierarchical-remask": "unmasking=hierarchical-remask",
    "cai": "unmasking=cai",
    "dc-leap": "unmasking=dc-leap unmasking.window=32 block_length=64",
    "remdm": "unmasking=remdm",
    "growing": "unmasking=threshold blocks=growing blocks.limit=32",
    "adablock": "unmasking=threshold blocks=adablock",
}
BLOCK_RULES = ("growing", "adablock")
"""rules that are no business of a block-causal model, whose blocks are its own"""


def row(name: str, cache: str, evaluation: Evaluation, found: dict[tuple[str, str], Outcome]) -> str:
    """Return one line of the table."""
    outcome = found[name, cache]
    score, speedup = evaluation.score(outcome), evaluation.speedup(outcome)
    return (
        f"| {name} | {cache} | {100 * score.value:.1f} [{100 * score.low:.1f}, {100 * score.high:.1f}] "
        f"| {outcome.canvas_tokens_per_forward:.2f} | {100 * evaluation.compute_share(outcome):.1f} % "
        f"| {f'{speedup.value:.1f}' if speedup else ONE_BATCH} | {multiplied(name, cache, evaluation, found)} |"
    )


def multiplied(name: str, cache: str, evaluation: Evaluation, found: dict[tuple[str, str], Outcome]) -> str:
    """Return how many times the product of a rule's share and skipping's, each of the dual cache's, both together leave."""
    if cache != "es-dllm" or name == "one per step":
        return ""
    one = {each: evaluation.compute_share(found["one per step", each]) for each in CACHES}
    dual, both = (evaluation.compute_share(found[name, each]) for each in ("dual-cache", "es-dllm"))
    return f"{both / (dual * one['es-dllm'] / one['dual-cache']):.2f}"


def main(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or name.")],
    out: Annotated[Path, typer.Option(help="Where to write, without the ending.")],
    count: Annotated[int, typer.Option(help="Held-out problems of each task.")] = 60,
    batch: Annotated[int, typer.Option(help="Prompts decoded together.")] = 50,
    warm_up: Annotated[
        bool, typer.Option(help="Decode once unmeasured, which times need and nothing else does.")
    ] = True,
    rule: Annotated[list[str] | None, typer.Option(help="Only these rules; repeatable.")] = None,
) -> None:
    """Measure the decoding rules on a model and the tiny suite: without a cache, over the dual cache, with early skipping."""
    catalogue = Catalogue.load()
    suite = load_suite("tiny", catalogue)
    problems = taken(of_split(suite.problems(), "test"), count, ())
    rules = {name: RULES[name] for name in ("one per step", *(rule or list(RULES)[1:]))}
    if "sdar" in model:
        rules = {name: text for name, text in rules.items() if name not in BLOCK_RULES}
    texts = {(name, cache): f"{cache} {text}".strip() for name, text in rules.items() for cache in CACHES}
    contenders = [Contender.of(text, catalogue, settings=suite.settings) for text in texts.values()]
    evaluation = measured(model, suite, problems, contenders, batch, catalogue, out, warm_up=warm_up)
    found = dict(zip(texts, evaluation.outcomes, strict=True))
    print(f"{model}: {len(problems)} problems, batches of {evaluation.batch_size}.\n")
    print("| rule | cache | right, % [95 %] | tokens per forward | computation | speed-up | of the product |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(row(name, cache, evaluation, found) for name, cache in texts))


if __name__ == "__main__":
    typer.run(main)
