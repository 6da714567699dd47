"""What becomes of freed memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from esdllm.runtime import allocator

COUNT = """
import resource, sys
import torch
from esdllm.runtime.allocator import give_back, keep_freed_memory

def faults(rounds=5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        kept = [torch.ones(size << 20, dtype=torch.uint8) for size in (64, 48, 3)]
        del kept
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
usual = faults()
assert keep_freed_memory()
faults(1)
print(usual, 5 * min(faults(1) for _ in range(5)))  # a kernel short of memory may take a page back by itself
give_back()
print(faults(1))
"""


def test_an_allocator_that_the_environment_speaks_to_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(allocator, "_glibc", asked.append)
    for name, value in (("MALLOC_TRIM_THRESHOLD_", "131072"), ("GLIBC_TUNABLES", "glibc.malloc.trim_threshold=131072")):
        monkeypatch.setenv(name, value)
        assert not allocator.keep_freed_memory()
        monkeypatch.delenv(name)
    assert not asked
    assert not allocator.keep_freed_memory()
    assert asked == ["mallopt"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts the pages that Linux maps")
def test_what_is_freed_is_used_again_without_mapping_a_page_until_it_is_given_back() -> None:
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    found = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, env=quiet)
    if found.returncode and "assert keep_freed_memory" in found.stderr:
        pytest.skip("this C library has no mallopt")
    (usual, kept), (again,) = (map(int, line.split()) for line in found.stdout.splitlines())
    assert usual > 5 * (64 + 48) * 16  # pages, were they as large as 64 KiB
    assert kept < usual / 100
    assert again > 3 * kept
