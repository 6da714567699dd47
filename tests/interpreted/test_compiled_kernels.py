"""What the interpreter does not see of our own Triton kernels: that they compile for GPUs, and fit into what those have."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = {86: 99 << 10, 90: 227 << 10}
"""bytes that a program may have of a multiprocessor's memory, by compute capability: GeForce of 2020, H100"""
KERNELS = {"_attend", "_join", "_rotate", "_add_norm", "_gate", "_write", "_slice", "_vary", "_score"}


@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_compiles_for_a_gpu_and_fits_into_it(capability: int, tmp_path: Path) -> None:
    script = Path(__file__).with_name("compiling.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script), str(capability)],
        capture_output=True,
        text=True,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["kernel"] for line in lines} == KERNELS
    assert max(line["shared"] for line in lines) <= SHARED[capability]
