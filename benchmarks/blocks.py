"""Whether early skipping pays on a block-causal model: against the exact prefix cache, at several block sizes.

    python benchmarks/blocks.py quality --out blocks   # right answers of tiny-sdar on held-out problems
    python benchmarks/blocks.py speed --out blocks     # FLOPs and time at the geometry `small` in SDAR's form, random weights

Each prints a Markdown table and writes what it measured into the folder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from on_suite import measured

from esdllm import Catalogue
from esdllm.measure.benchmarking import SCALED, Report, Setting, bench, contenders_named
from esdllm.measure.evaluation import Contender, Evaluation, load_suite, of_split, taken

SIZES = (4, 16, 32, 64)
EXACT, SKIPPING = "dual-cache", "es-dllm"
"""every position of the block at every step, over keys that are final; and those alone that early skipping leaves"""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Out = Annotated[Path, typer.Option(help="Folder to write into.")]
Sizes = Annotated[list[int] | None, typer.Option("--size", help="Block size, 4, 16, 32 and 64 by default; repeatable.")]


def sdar(size: int) -> Mapping[str, Any]:
    """Return the config.json of the geometry `small` as SDAR would have it, with blocks of a size."""
    small = SCALED["small"]
    return {
        "model_type": "sdar",
        "torch_dtype": small["torch_dtype"],
        "hidden_size": small["d_model"],
        "num_hidden_layers": small["n_layers"],
        "num_attention_heads": small["n_heads"],
        "num_key_value_heads": small["n_kv_heads"],
        "head_dim": small["d_model"] // small["n_heads"],
        "intermediate_size": small["mlp_hidden_size"],
        "vocab_size": small["vocab_size"],
        "rope_theta": small["rope_theta"],
        "rms_norm_eps": small["rms_norm_eps"],
        "max_position_embeddings": small["max_sequence_length"],
        "mask_token_id": small["mask_token_id"],
        "eos_token_id": small["eos_token_id"],
        "block_size": size,
    }


@app.command()
def quality(
    out: Out, sizes: Sizes = None, count: Annotated[int, typer.Option(help="Held-out problems of each task.")] = 100
) -> None:
    """Measure the right answers of tiny-sdar with skipping, and what it computes, against the exact prefix cache."""
    catalogue = Catalogue.load()
    print("| block | exact prefix, right | with skipping, right | lost [95 %] | forwards | computation |")
    print("|---|---|---|---|---|---|")
    for size in sizes or SIZES:
        print(quality_row(size, evaluated(size, count, catalogue, out)), flush=True)


def evaluated(size: int, count: int, catalogue: Catalogue, out: Path) -> Evaluation:
    """Return the evaluation of both at a block size; the exact prefix cache is the reference."""
    suite = load_suite("tiny", catalogue)
    problems = taken(of_split(suite.problems(), "test"), count, ())
    settings = {**suite.settings, "block_length": size}
    contenders = [Contender.of(text, catalogue, settings=settings) for text in (EXACT, SKIPPING)]
    where = out / f"quality-{size}"
    return measured("tiny-sdar", suite, problems, contenders, 50, catalogue, where, family=f"sdar,block_size={size}")


def quality_row(size: int, evaluation: Evaluation) -> str:
    """Return a row of the table of right answers."""
    exact, skipping = evaluation.outcomes
    loss = evaluation.loss(skipping)
    return (
        f"| {size} | {100 * evaluation.score(exact).value:.1f} % | {100 * evaluation.score(skipping).value:.1f} % "
        f"| {100 * loss.value:+.1f} [{100 * loss.low:+.1f}, {100 * loss.high:+.1f}] "
        f"| {exact.forwards_per_answer:.1f}, {skipping.forwards_per_answer:.1f} "
        f"| {100 * evaluation.compute_share(skipping):.1f} % |"
    )


@app.command()
def speed(
    out: Out,
    sizes: Sizes = None,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", help="Prompts at once, 1 and 8 by default; repeatable.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Times that both take turns.")] = 3,
    sample: Annotated[int, typer.Option(help="Steps of each plan that are made.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Measure how many times as fast skipping decodes as the exact prefix cache, and how many times as few FLOPs it takes."""
    catalogue, batches = Catalogue.load(), batches or [1, 8]
    out.mkdir(parents=True, exist_ok=True)
    print(f"| block | FLOPs | {' | '.join(f'time, batch {batch} [quartiles]' for batch in batches)} |")
    print("|---" * (2 + len(batches)) + "|")
    for size in sizes or SIZES:
        reports = []
        for batch in batches:
            setting = Setting("small, sdar", sdar(size), batch=batch, device="cpu", threads=threads, sample=sample)
            contenders = contenders_named([EXACT, SKIPPING], catalogue, [f"block_length={size}", "gen_length=128"])
            reports.append(bench(setting, contenders, rounds=rounds, peak=lambda _: None, catalogue=catalogue))
            told = json.dumps(reports[-1].to_dict(), indent=1) + "\n"
            (out / f"speed-{size}-{batch}.json").write_text(told, encoding="utf-8")
        print(speed_row(size, reports), flush=True)


def speed_row(size: int, reports: list[Report]) -> str:
    """Return a row of the table of speed."""
    times = [report.speedup(report.timings[1]) for report in reports]
    told = " | ".join(f"{time.median:.2f} [{time.low:.2f}, {time.high:.2f}]" for time in times)
    return f"| {size} | {reports[0].flops_ratio(reports[0].timings[1]):.2f} | {told} |"


if __name__ == "__main__":
    app()
