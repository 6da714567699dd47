"""What becomes of freed memory."""

from __future__ import annotations

import subprocess
import sys

import pytest

COUNT = """
import resource, sys
import torch
from esdllm.allocator import give_back, keep_freed_memory

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
print(usual, faults())
give_back()
print(faults(1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts the pages that Linux maps")
def test_what_is_freed_is_used_again_without_mapping_a_page_until_it_is_given_back() -> None:
    found = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True)
    if found.returncode and "assert keep_freed_memory" in found.stderr:
        pytest.skip("this C library has no mallopt")
    (usual, kept), (again,) = (map(int, line.split()) for line in found.stdout.splitlines())
    assert usual > 5 * (64 + 48) * 16  # pages, were they as large as 64 KiB
    assert kept < usual / 100
    assert again > 3 * kept
