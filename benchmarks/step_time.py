"""The time of one full, one block and one skip step, beside the bare loop, which has no framework.

    python benchmarks/step_time.py [--compile] [--pairs 7] [--size small,vocab=126464]

Random weights: speed only. The two share them, and are measured in one process, one after the other in turns, on one thread;
medians and the median of the pairs' ratios are printed. `esdllm bench bare es-dllm` measures whole runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import typer

from esdllm import Catalogue, Engine, Model
from esdllm.benchmarking import geometry
from esdllm.benchmarking.bare import BareLayer, BareLoop, BareWeights
from esdllm.canvas import Canvas
from esdllm.forward import StepInputs
from esdllm.loading import random_model
from esdllm.plan import Layout, Step

PROMPT, BLOCK = 128, 64
WHICH = {"full": 0, "block": 16, "skip": 1}
"""numbers of the steps in a run that refreshes the block every 16 steps"""


def bare_weights(model: Model) -> BareWeights:
    """Return the model's own weights for the bare loop."""
    whole = model.adapter
    layers = (
        BareLayer(
            one.attn_norm,
            one.qkv.weight,
            one.qkv.bias,
            one.out.weight,
            one.mlp_norm,
            one.gate_up.weight,
            one.down.weight,
        )
        for one in whole.layers
    )
    return BareWeights(whole.embedding, tuple(layers), whole.norm, whole.head.weight)


def ours(engine: Engine, tokens: torch.Tensor, step: Step) -> Callable[[], None]:
    """Return the engine's own step."""
    adapter, mask = engine.model.adapter, torch.ones(tokens.shape, dtype=torch.bool)
    canvas = Canvas.of(tokens, mask, torch.zeros(1, dtype=torch.int64), adapter.spec, 1, adapter.device, adapter.dtype)
    planner = engine.planner(Layout.of(PROMPT, BLOCK, adapter.spec.logit_shift))
    parts = engine.components.parts(adapter, engine.allocated(canvas, planner))
    columns, start, plan = canvas.columns, step.start or 0, step.plan
    first = step.block.start - start
    inputs = StepInputs(
        columns[start : start + plan.window].expand(1, -1),
        columns[step.block.start : step.block.stop].expand(1, -1),
        columns[first : first + plan.block],
        torch.ones(1, dtype=torch.int64),
        columns[0],
    )
    return lambda: engine.step_function(parts, plan, canvas, inputs)


def seconds(step: Callable[[], None]) -> float:
    """Return the time of one step."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main(compile: bool = False, pairs: int = 7, threads: int = 1, size: str = "small,vocab=126464") -> None:
    """Print a table: kind of step, ours and the bare loop's milliseconds (medians), and the median ratio."""
    torch.set_num_threads(threads)
    catalogue = Catalogue.load()
    settings = {"gen_length": BLOCK, "block_length": BLOCK, "compile": compile, "early_stop": False}
    model = random_model(geometry(size, catalogue), "cpu", None, catalogue)
    spec, weights = model.spec, bare_weights(model)
    engine = Engine.build(model, catalogue.configure("es-dllm", settings=settings), catalogue)
    steps = engine.planner(Layout.of(PROMPT, BLOCK, spec.logit_shift)).rehearse()
    prompt = torch.randint(0, spec.mask_id, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    tokens = torch.cat([prompt, torch.full((1, BLOCK), spec.mask_id)], 1)
    print(f"{'step':6} {'ours':>9} {'bare':>9} {'ratio':>7}   ({'compiled' if compile else 'eager'}, {threads} thread)")
    with torch.inference_mode():
        for name, number in WHICH.items():
            mine = ours(engine, tokens, steps[number])
            loop = BareLoop(spec, weights, prompt, BLOCK, steps[0].plan.scored, delay_eos=True)
            make = torch.compile(loop.step, dynamic=False) if compile else loop.step

            def theirs(make: Callable[[Step], None] = make, step: Step = steps[number]) -> None:
                make(step)

            for warm_up in (mine, theirs) * 2:
                warm_up()
            taken = [(seconds(mine), seconds(theirs)) for _ in range(pairs)]
            medians = [statistics.median(column) * 1e3 for column in zip(*taken, strict=True)]
            ratio = statistics.median(a / b for a, b in taken)
            print(f"{name:6} {medians[0]:7.1f}ms {medians[1]:7.1f}ms {ratio:7.3f}", flush=True)


if __name__ == "__main__":
    typer.run(main)
