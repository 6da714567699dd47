"""A model of LLaDA-8B's or Dream-7B's size with random weights: the memory it takes, and that it decodes.

    python benchmarks/big.py [--geometry llada-8b] [--quantize int8] [--gen-length 16] [--threads 1]

Random weights: memory and speed only. Peak memory is that of the process, from its start.
"""

from __future__ import annotations

import resource
import time

import torch
import typer

from esdllm import Catalogue, Engine
from esdllm.testing import random_model


def peak() -> float:
    """Return the most memory that the process has held, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main(
    geometry: str = "llada-8b",
    quantize: str = "int8",
    dtype: str = "bfloat16",
    preset: str = "es-dllm",
    prompt: int = 64,
    gen_length: int = 16,
    threads: int = 1,
) -> None:
    """Print what loading and decoding took."""
    torch.set_num_threads(threads)
    catalogue = Catalogue.load()
    started = time.perf_counter()
    model = random_model(geometry, "cpu", dtype, catalogue, quantize=quantize or None)
    print(f"{geometry}, {dtype}, {quantize or 'not quantised'}, {threads} thread(s), torch {torch.__version__}")
    print(f"made in {time.perf_counter() - started:.0f} s; peak {peak():.2f} GB", flush=True)
    settings = {"gen_length": gen_length, "block_length": gen_length, "early_stop": False}
    engine = Engine.build(model, catalogue.configure(preset, settings=settings), catalogue)
    found = engine.generate([list(range(100, 100 + prompt))])
    print(
        f"{preset}: {found.committed} tokens in {found.forwards} forwards, {found.seconds:.1f} s, "
        f"{100 * found.layer_share:.0f} % of vanilla's layer work; peak {peak():.2f} GB"
    )


if __name__ == "__main__":
    typer.run(main)
