"""The time of one full, one block and one skip step, beside a bare loop without any framework.

    python benchmarks/step_time.py [--compile] [--pairs 7]

Random weights: speed only. The two are measured in one process, one after the other in turns, on one thread; medians and the
median of the pairs' ratios are printed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import typer
from bare_loop import BLOCK, CANVAS, HEADS, HIDDEN, LAYERS, MASK, MLP, START, VOCAB, BareLoop

from esdllm import Catalogue, Engine, Model, ModelSpec, Phase, StepPlan
from esdllm.canvas import Canvas
from esdllm.forward import StepInputs
from esdllm.plan import Layout
from esdllm_models.building import made_of
from esdllm_models.linear import Dense
from esdllm_models.transformer import Geometry, Transformer

SPEC = ModelSpec(
    family="llada",
    n_layers=LAYERS,
    hidden=HIDDEN,
    n_heads=HEADS,
    n_kv_heads=HEADS,
    head_dim=HIDDEN // HEADS,
    vocab=VOCAB,
    context=4096,
    mask_id=MASK,
    eos_id=MASK - 1,
    intermediate=MLP,
)
LAYOUT = Layout.of(START, BLOCK, 0)
_ALL, _KEPT = (BLOCK,) * LAYERS, (64, 64, 32, 32, *(16,) * (LAYERS - 4))
PLANS = {
    "full": StepPlan(CANVAS, BLOCK, (CANVAS,) * LAYERS, (2, 4), Phase.ALL, narrow=True),
    "block": StepPlan(BLOCK, BLOCK, _ALL, (2, 4), Phase.ALL),
    "skip": StepPlan(BLOCK, BLOCK, _KEPT, (2, 4), Phase.ALL),
}


def model(bare: BareLoop) -> Model:
    """Return our model with the bare loop's weights."""
    ones = torch.ones(HIDDEN, dtype=torch.bfloat16)
    layers = tuple(
        made_of(SPEC, attn_norm=ones, qkv=qkv, out=out, mlp_norm=ones, gate_up=gate_up, down=down)
        for qkv, out, gate_up, down in (map(Dense, layer) for layer in bare.layers)
    )
    geometry = Geometry(500000.0, 1e-5, qkv_bias=False)
    return Model(Transformer(SPEC, geometry, bare.embedding, layers, ones, Dense(bare.head)))


def ours(bare: BareLoop, compiled: bool) -> dict[str, Callable[[], None]]:
    """Return the engine's own step for each plan."""
    settings = {"gen_length": CANVAS - START, "block_length": BLOCK, "compile": compiled, "early_stop": False}
    catalogue = Catalogue.load()
    engine = Engine.build(model(bare), catalogue.configure("es-dllm", settings=settings), catalogue)
    mask = torch.ones(1, CANVAS, dtype=torch.bool)
    seeds, device = torch.zeros(1, dtype=torch.int64), torch.device("cpu")
    canvas = Canvas.of(bare.tokens, mask, seeds, SPEC, branches=1, device=device, dtype=torch.bfloat16)
    parts = engine.components.parts(engine.model.adapter, engine.allocated(canvas, engine.planner(LAYOUT)))

    def step(plan: StepPlan, start: int) -> Callable[[], None]:
        columns = canvas.columns
        inputs = StepInputs(
            columns[start : start + plan.window].expand(1, -1),
            columns[START:].expand(1, -1),
            columns[START - start : START - start + BLOCK],
            torch.ones(1, dtype=torch.int64),
            columns[0],
        )
        return lambda: engine.step_function(parts, plan, canvas, inputs)

    return {name: step(plan, 0 if name == "full" else START) for name, plan in PLANS.items()}


def seconds(step: Callable[[], None]) -> float:
    """Return the time of one step."""
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def main(compile: bool = False, pairs: int = 7, threads: int = 1) -> None:
    """Print a table: kind of step, ours and the bare loop's milliseconds (medians), and the median ratio."""
    torch.set_num_threads(threads)
    with torch.inference_mode():
        bare = BareLoop()
        mine = ours(bare, compile)
        theirs = {"full": bare.full, "block": bare.block, "skip": bare.skip}
        if compile:
            theirs = {name: torch.compile(step, dynamic=False) for name, step in theirs.items()}
        print(
            f"{'step':6} {'ours':>9} {'bare':>9} {'ratio':>7}   ({'compiled' if compile else 'eager'}, {threads} thread)"
        )
        for name in PLANS:
            for warm_up in (mine[name], theirs[name]) * 2:
                warm_up()
            taken = [(seconds(mine[name]), seconds(theirs[name])) for _ in range(pairs)]
            medians = [statistics.median(column) * 1e3 for column in zip(*taken, strict=True)]
            ratio = statistics.median(a / b for a, b in taken)
            print(f"{name:6} {medians[0]:7.1f}ms {medians[1]:7.1f}ms {ratio:7.3f}")


if __name__ == "__main__":
    typer.run(main)
