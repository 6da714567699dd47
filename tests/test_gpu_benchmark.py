"""What a GPU would be asked runs on the CPU at toy size: every stage of `benchmarks/gpu.py` comes to its end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALL = ["right", "fast-8", "fast-1", "where", "kernels", "fast-32", "breadth"]
EVERY_WORK = [stage for stage in ALL if stage not in ("fast-8", "fast-32")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "stages", [EVERY_WORK, pytest.param(ALL, marks=pytest.mark.full)], ids=["each work once", "at every batch"]
)
def test_every_stage_ends_nothing_fails_but_what_needs_a_gpu_and_what_is_said_to_be_equal_is(
    stages: list[str], tmp_path: Path
) -> None:
    options = ["--rehearse", "--limit", "3000", "--out", str(tmp_path)]
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *options, *stages]
    subprocess.run(command, check=True, capture_output=True)
    lines = [json.loads(line) for line in (tmp_path / "gpu.jsonl").read_text(encoding="utf-8").splitlines()]
    ended = {line["stage"]: line["value"] for line in lines if line["what"] == "ended"}
    assert list(ended) == stages
    assert all(value.startswith("whole") for value in ended.values()), ended
    failed = {line["of"] for line in lines if "of" in line and str(line["value"]).startswith("FAILED")}
    optional = {f"{family}, {part}.fused" for family in ("llada", "Dream") for part in ("sampler", "importance")}
    for_gpus = {"flex", "xformers", "triton", *optional}
    assert failed == for_gpus
    found = {(line["of"], line["what"]): line["value"] for line in lines if line["stage"] == "right" and "of" in line}
    for how in ("graphs", "eager", "compiled"):
        assert str(found["conformance", how]).endswith(" passed, 0 failed")
    for family in ("llada", "Dream"):
        assert found[family, "graphs against eager"] == "16 of 16 equal"
        assert found[family, "fused kernels against plain"] == "8 of 8 equal"


def test_a_stage_is_cut_at_its_limit_and_one_for_which_no_time_is_left_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    gpu = import_module("gpu")
    monkeypatch.setattr(gpu, "STAGES", {"right": gpu.STAGES["right"]._replace(seconds=1.0)})
    monkeypatch.setattr(gpu, "PATIENCE", 1)
    gpu.run("right", True, tmp_path, time.monotonic() + 60)
    gpu.run("right", True, tmp_path, time.monotonic() + 0.5)
    found = [line["value"] for line in gpu.read(tmp_path / "gpu.jsonl") if line["what"] == "ended"]
    assert found == ["cut at its limit of 1 s, 1 s", "left out: the time is up"]


def test_a_run_that_was_cut_is_still_read(tmp_path: Path) -> None:
    whole = {"stage": "right", "of": "waits", "what": "in steps", "value": "none"}
    (tmp_path / "gpu.jsonl").write_text(json.dumps(whole) + '\n{"stage": "fast-8", "of": "dual', encoding="utf-8")
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--table", "--out", str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "waits" in done.stdout
    assert "fast-8" not in done.stdout
