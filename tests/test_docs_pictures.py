"""The pictures of the docs are of real runs: what their script records is what the runs computed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from esdllm import Catalogue
from esdllm.testing import check_cache_store, tiny_model

ROOT = Path(__file__).parent.parent
SETS = ["gen_length=8", "block_length=4", "early_stop=false"]


@pytest.fixture(scope="module")
def canvas() -> Iterator[ModuleType]:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("canvas_script", ROOT / "benchmarks" / "canvas.py")
    assert spec
    assert spec.loader
    module = sys.modules["canvas_script"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["canvas_script"]


@pytest.mark.slow
def test_a_recorded_store_is_the_store_that_it_records(canvas: ModuleType) -> None:
    catalogue = Catalogue.load({"recorded": canvas})
    check_cache_store(catalogue.build("cache", catalogue.configure("es-dllm", sets=["cache=recorded"]).cache))


@pytest.mark.parametrize("family", ["llada", "Dream"])
@pytest.mark.parametrize("preset", ["vanilla", "dual-cache", "es-dllm"])
def test_what_is_recorded_is_what_the_plans_say(canvas: ModuleType, family: str, preset: str) -> None:
    catalogue = Catalogue.load({"recorded": canvas})
    model = tiny_model(family, catalogue=catalogue)
    run = canvas.decode(model, preset, [[5, 6, 7, 8, 9]], catalogue, SETS)
    assert sum(int(row.committed.sum()) for row in run.rows) == 8
    for row in run.rows:
        counts = tuple(row.computed.sum(1).tolist())
        if row.plan.clamped:  # its head repeats a position
            assert all(count <= planned for count, planned in zip(counts, row.plan.computed, strict=True))
        else:
            assert counts == row.plan.computed
        inside = torch.zeros_like(row.committed)
        inside[row.block.start : row.block.stop] = True
        assert not (row.committed & ~inside).any()


@pytest.mark.slow
def test_the_pictures_are_drawn(canvas: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    canvas.main("tiny-llada", "Who are you?", ["gen_length=16", "block_length=8"], tmp_path, threads=1)
    assert {path.name for path in tmp_path.iterdir()} == {"canvas-tiny-llada.png", "canvas-tiny-llada-step.png"}
