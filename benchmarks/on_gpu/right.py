"""Right: recorded cases on the device, eager, compiled and as graphs; no wait within a step; backends and stores agree."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from esdllm import Catalogue, Engine
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.run import Run
from esdllm.testing import random_model, tiny_model
from esdllm.testing.conformance import conformance
from esdllm_models.elementwise import PLAIN
from on_gpu.ground import Ground

CASES = Path(__file__).parents[2] / "tests" / "conformance"


def run(ground: Ground) -> None:
    """Run the stage."""
    catalogue, device = Catalogue.load(), str(ground.device)

    def cases(every: int, **overrides: Any) -> str:
        found = conformance(CASES, overrides=overrides, catalogue=catalogue, device=device, every=every)
        return str(found) + "".join(f"; {name}: {why}" for name, why in list(found.failures.items())[:3])

    few = 120 if ground.toy else 10
    ground.attempt("conformance", "graphs", lambda: cases(few))
    ground.attempt("conformance", "eager", lambda: cases(few, cuda_graphs=False))
    ground.attempt("waits", "in steps", partial(_waits, ground, catalogue))
    for family in ("llada", "Dream"):
        ground.attempt(family, "graphs against eager", partial(_graphs, ground, catalogue, family))
    for attention in ("eager", "sdpa", "auto", "flex", "xformers", "triton"):
        ground.attempt(attention, "against sdpa, bfloat16", partial(_attention, ground, catalogue, attention))
    for store in ("dense", "int8", "offloaded"):
        ground.attempt(store, "tokens against dense", partial(_store, ground, catalogue, store))
    for family in ("llada", "Dream"):
        ground.attempt(family, "fused kernels against plain", partial(_fused, ground, catalogue, family))
        for option in ("sampler.fused", "importance.fused"):
            ground.attempt(
                f"{family}, {option}", "tokens against plain", partial(_chosen, ground, catalogue, family, option)
            )
    ground.attempt("devices", "named cuda:0 and cuda", partial(_named, ground, catalogue))
    ground.attempt("close()", "bytes left", partial(_closed, ground, catalogue))
    how = {"compile": True, "compile_backend": "aot_eager" if ground.toy else "inductor", "cuda_graphs": False}
    ground.attempt("conformance", "compiled", lambda: cases(few * (3 if ground.toy else 20), **how))


def _engine(
    ground: Ground, catalogue: Catalogue, family: str, *sets: str, dtype: torch.dtype = torch.float32
) -> Engine:
    model = tiny_model(family, ground.device, catalogue, dtype=dtype)
    config = catalogue.configure("es-dllm", sets=["gen_length=32", "block_length=16", "early_stop=false", *sets])
    return Engine.build(model, config, catalogue)


def _prompts(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 60, (rows, length), generator=torch.Generator().manual_seed(seed))


def _graphs(ground: Ground, catalogue: Catalogue, family: str) -> str:
    graphs, eager = (_engine(ground, catalogue, family, f"cuda_graphs={on}") for on in ("true", "false"))
    equal = 0
    for length in (20, 33, 20, 48, 20):
        for seed in range(3):
            given = _prompts(2, length, seed)
            equal += torch.equal(graphs.generate(given).tokens, eager.generate(given).tokens)
    lists = [_prompts(1, length).tolist()[0] for length in (12, 7, 9)]
    equal += torch.equal(graphs.generate(lists).tokens, eager.generate(lists).tokens)
    return f"{equal} of 16 equal"


@contextmanager
def _no_waiting(ground: Ground) -> Iterator[None]:
    """Make every wait for the device an error but those of `Canvas.facts`."""
    if ground.device.type != "cuda":
        yield
        return
    denoise, facts = Run.denoise, Canvas.facts

    def strictly(*a: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            denoise(*a)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def freely(*a: Any) -> Any:
        torch.cuda.set_sync_debug_mode("default")
        found = facts(*a)
        torch.cuda.set_sync_debug_mode("error")
        return found

    Run.denoise, Canvas.facts = strictly, freely  # type: ignore[method-assign]
    try:
        yield
    finally:
        Run.denoise, Canvas.facts = denoise, facts  # type: ignore[method-assign]


def _waits(ground: Ground, catalogue: Catalogue) -> str:
    for sets in (["cuda_graphs=false"], ["cuda_graphs=true"], ["unmasking=threshold", "cuda_graphs=false"]):
        engine = _engine(ground, catalogue, "llada", *sets)
        engine.generate(_prompts(2, 20))
        with _no_waiting(ground):
            for seed in range(2):
                engine.generate(_prompts(2, 20, seed))
    return "none"


def _attention(ground: Ground, catalogue: Catalogue, name: str) -> str:
    shape = {"model_type": "llada", "d_model": 256, "n_layers": 4, "n_heads": 4, "n_kv_heads": 4, "mlp_hidden_size": 512,
             "vocab_size": 512, "rope_theta": 5e5, "rms_norm_eps": 1e-5, "max_sequence_length": 2048, "mask_token_id": 511,
             "eos_token_id": 510, "torch_dtype": "bfloat16"}  # fmt: skip
    model = random_model(shape, ground.device, ground.dtype, catalogue)
    given = [_prompts(1, length).tolist()[0] for length in (40, 33)]
    tokens = []
    for attention in (name, "sdpa"):
        config = catalogue.configure("es-dllm", sets=["gen_length=32", "block_length=16", f"attention={attention}"])
        engine = Engine.build(model, config, catalogue)
        engine.generate(given)
        tokens.append(engine.generate(given).tokens)
        chosen = engine.components.attention_choice
    same = (tokens[0] == tokens[1]).float().mean().item()
    return f"{100 * same:.0f} % of the tokens" + (f" ({chosen.name})" if chosen else "")


def _store(ground: Ground, catalogue: Catalogue, name: str) -> str:
    given = _prompts(2, 40)
    found, dense = (_engine(ground, catalogue, "llada", f"cache={store}") for store in (name, "dense"))
    found.generate(given)
    same = (found.generate(given).tokens == dense.generate(given).tokens).float().mean().item()
    return f"{100 * same:.0f} % equal, {'recorded' if found.step_function.recording else 'not recorded'}"


def _fused(ground: Ground, catalogue: Catalogue, family: str) -> str:
    equal = 0
    for seed in range(8):
        fused, plain = (_engine(ground, catalogue, family) for _ in range(2))
        plain.model.adapter.elementwise = PLAIN  # type: ignore[attr-defined]
        given = _prompts(2, 40, seed)
        equal += torch.equal(fused.generate(given).tokens, plain.generate(given).tokens)
    return f"{equal} of 8 equal"


def _chosen(ground: Ground, catalogue: Catalogue, family: str, option: str) -> str:
    equal = 0
    for seed, temperature in enumerate((0.0, 0.0, 0.0, 0.7)):
        tokens = []
        for fused in ("true", "false"):
            engine = _engine(ground, catalogue, family, f"sampler.temperature={temperature}", f"{option}={fused}")
            tokens.append(engine.generate(_prompts(2, 40, seed)).tokens)
        equal += torch.equal(*tokens)
    return f"{equal} of 4 equal"


def _named(ground: Ground, catalogue: Catalogue) -> str:
    names = [str(ground.device), "cpu" if ground.toy else "cuda:0"]
    tokens = []
    for name in names:
        config = catalogue.configure("es-dllm", sets=["gen_length=32", "block_length=16"])
        tokens.append(
            Engine.build(tiny_model("llada", name, catalogue), config, catalogue).generate(_prompts(2, 20)).tokens
        )
    return "equal" if torch.equal(*tokens) else "different"


def _closed(ground: Ground, catalogue: Catalogue) -> int:
    if ground.device.type != "cuda":
        return 0
    engine = _engine(ground, catalogue, "llada")
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(3):
        engine.generate(_prompts(2, 600))
    engine.close()
    return torch.cuda.memory_allocated() - before
