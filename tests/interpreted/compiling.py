"""Compiles our Triton kernels for GPUs that are not here: python compiling.py CAPABILITY. Prints what each takes of a GPU.

Every kernel is called as a step calls it, at the widths of LLaDA-8B and Dream-7B, and compiled as such a call is before it is
launched; it is never launched. Not under the interpreter, which knows nothing of types and of memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from esdllm_backends.attention.split_keys import attend_splitting
from esdllm_backends.cache.lines import write_lines
from esdllm_models.elementwise import Rotation
from esdllm_models.fused import Fused
from esdllm_policies.fused import hybrid_score, most_probable

BATCH, CANVAS = 8, 1156


class Absent:
    """A GPU that is not here."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


def compiled(kernel: Any, grid: Any) -> Callable[..., None]:
    """Return what stands for `kernel[grid]`."""

    def call(*arguments: Any, **named: Any) -> None:
        made = kernel.run(*arguments, grid=grid, warmup=True, **named)
        print(json.dumps({"kernel": kernel.fn.__name__, "shared": made.metadata.shared}))

    return call


def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def step(heads: int, groups: int, dim: int, window: int, dtype: torch.dtype, vocab: int) -> None:
    """Call what a step of `window` positions calls."""
    queries, hidden = zeros(BATCH, window, heads, dim, dtype=dtype), zeros(BATCH, window, heads * dim, dtype=dtype)
    lines = zeros(BATCH * groups * CANVAS, dim, dtype=dtype)
    keys = lines.view(BATCH, groups, CANVAS, dim).transpose(1, 2)
    bias, padding = zeros(BATCH, CANVAS, dtype=dtype), zeros(BATCH)
    for splits in (1, 3):
        for known in ((None, None), (bias, None), (bias, padding)):
            attend_splitting(queries, keys, keys, *known, splits)
    angles = zeros(BATCH, window, 1, dim // 2, dtype=torch.float32)
    Fused().rotate(queries, Rotation(angles, angles))
    Fused().add_norm(hidden, hidden, hidden[0, 0], 1e-5)
    Fused().gate(zeros(BATCH, window, 256, dtype=dtype))
    new = queries[:, :, :groups]
    write_lines(lines, lines, zeros(BATCH, window), new, new)
    most_probable(zeros(1, 2, vocab, dtype=dtype))
    confidence, committed = zeros(BATCH, window, dtype=torch.float32), zeros(BATCH, window, dtype=torch.bool)
    for alpha in (0.0, 0.5, 1.0):
        hybrid_score(hidden, hidden, confidence, committed, alpha, 2.0, 3.0)


if __name__ == "__main__":
    driver.set_active(Absent(int(sys.argv[1])))
    JITFunction.__getitem__ = compiled
    for dtype in (torch.bfloat16, torch.float32):
        step(32, 32, 128, 16, dtype, 126464)  # LLaDA-8B
    step(28, 4, 128, 64, torch.bfloat16, 152064)  # Dream-7B
