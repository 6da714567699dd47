"""The stage of `benchmarks/gpu.py` that sets our Triton kernels beside torch's operators, by Triton's interpreter."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_every_kernel_of_ours_is_set_beside_torch_s_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    from on_gpu import kernels
    from on_gpu.ground import Ground

    kernels.run(Ground("kernels", tmp_path / "lines", toy=True))
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text(encoding="utf-8").splitlines()]
    assert not [line for line in lines if "FAILED" in str(line["value"])]
    apart = {line["of"]: float(line["value"]) for line in lines if line["what"] == "apart"}
    assert set(apart) == {line["of"] for line in lines if line["what"] == "us: ours" or line["what"] == "us: triton"}
    assert len(apart) == 8
    assert max(apart.values()) < 1e-5
