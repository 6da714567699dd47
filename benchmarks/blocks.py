"""Whether early skipping pays on a block-causal model: against the exact prefix cache, at several block sizes, in one run.

    python benchmarks/blocks.py --out docs/assets/blocks

What is computed and how long it takes, at the geometry `small` in SDAR's form with random weights; and right answers of tiny-sdar
on held-out problems. Prints a Markdown table; writes OUT.json.
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

EXACT = "dual-cache"
"""every position of the block at every step, over keys that are final"""
SKIPS = {"es-dllm": "es-dllm", "es-dllm, deeper": "es-dllm skip.keep=[[0,1],[0.125,0.25],[0.25,0.125]]"}


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


def speed(size: int, batch: int, rounds: int, threads: int, catalogue: Catalogue) -> Report:
    """Return what each contender takes at a block size; the exact prefix cache is the first."""
    setting = Setting("small, sdar", sdar(size), batch=batch, threads=threads, device="cpu")
    contenders = contenders_named([EXACT, *SKIPS.values()], catalogue, [f"block_length={size}", "gen_length=256"])
    return bench(setting, contenders, rounds=rounds, peak=lambda model: None, catalogue=catalogue)


def quality(size: int, count: int, catalogue: Catalogue, out: Path) -> Evaluation:
    """Return the right answers of each contender at a block size; the exact prefix cache is the reference."""
    suite = load_suite("tiny", catalogue)
    problems = taken(of_split(suite.problems(), "test"), count, ())
    settings = {**suite.settings, "block_length": size}
    contenders = [Contender.of(text, catalogue, settings=settings) for text in (EXACT, *SKIPS.values())]
    where = out.with_name(f"{out.name}-{size}")
    return measured("tiny-sdar", suite, problems, contenders, 50, catalogue, where, family=f"sdar,block_size={size}")


def table(speeds: Mapping[tuple[int, int], Report], qualities: Mapping[int, Evaluation]) -> str:
    """Return what was measured as Markdown: a row for each block size and each way to skip."""
    batches = sorted({batch for _, batch in speeds})
    heads = ["block", "", *(f"FLOPs, batch {batch}" for batch in batches)]
    heads += [f"time, batch {batch} [quartiles]" for batch in batches]
    lines = [f"| {' | '.join([*heads, 'right, %', 'lost [95 %]'])} |", "|---" * (len(heads) + 2) + "|"]
    for size, evaluation in qualities.items():
        exact, *skipping = evaluation.outcomes
        blank = " | ".join([""] * (2 * len(batches)))
        lines.append(f"| {size} | exact prefix | {blank} | {100 * evaluation.score(exact).value:.1f} | |")
        for number, (name, outcome) in enumerate(zip(SKIPS, skipping, strict=True), 1):
            score, loss = evaluation.score(outcome), evaluation.loss(outcome)
            reports = [speeds[size, batch] for batch in batches]
            flops = [f"{report.flops_ratio(report.timings[number]):.2f}" for report in reports]
            times = [report.speedup(report.timings[number]) for report in reports]
            told = [f"{time.median:.2f} [{time.low:.2f}, {time.high:.2f}]" for time in times]
            lost = f"{100 * loss.value:+.1f} [{100 * loss.low:+.1f}, {100 * loss.high:+.1f}]"
            lines.append(f"| {size} | {name} | {' | '.join([*flops, *told])} | {100 * score.value:.1f} | {lost} |")
    return "\n".join(lines)


def main(
    out: Annotated[Path, typer.Option(help="Where to write, without the ending.")],
    size: Annotated[list[int] | None, typer.Option(help="Block size; repeatable.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Prompts timed together; repeatable.")] = None,
    rounds: Annotated[int, typer.Option(help="Times that the contenders take turns.")] = 5,
    threads: Annotated[int, typer.Option(help="CPU threads of what is timed.")] = 2,
    count: Annotated[int, typer.Option(help="Held-out problems of each task.")] = 100,
) -> None:
    """Measure early skipping within the blocks of a block-causal model."""
    catalogue, sizes = Catalogue.load(), size or [4, 16, 32, 64]
    qualities = {size: quality(size, count, catalogue, out) for size in sizes}
    speeds = {(size, many): speed(size, many, rounds, threads, catalogue) for size in sizes for many in batch or [1, 8]}
    reports = [report.to_dict() for report in speeds.values()]
    out.with_suffix(".json").write_text(json.dumps(reports, indent=1) + "\n", encoding="utf-8")
    print(table(speeds, qualities))


if __name__ == "__main__":
    typer.run(main)
