"""Rows that stand apart: the clamped window goes by each row's own commits; in the published lockstep by any row's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runs import MODELS, Around, Build, prompts

from esdllm.runtime.canvas import Canvas
from esdllm.runtime.parts import ForwardPass

ROWS = 5
ONCE = {"refresh": {"prompt_refresh": 256, "block_refresh": 4}}  # blocks begin with what trails before them


@pytest.fixture(params=[False, True], ids=["lockstep", "apart"])
def apart(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the rows of this test's canvases stand apart."""
    made = Canvas.of
    monkeypatch.setattr(Canvas, "of", lambda *given, **named: made(*given, **{**named, "apart": request.param}))
    return bool(request.param)


def test_a_clamped_window_begins_where_its_row_committed_or_any_row(apart: bool, build: Build) -> None:
    engine = build("llada-0", "es-dllm", **ONCE)
    step, begun = engine.step_function, []

    def watched(parts: Any, plan: Any, canvas: Any, inputs: Any) -> None:
        if plan.clamped:
            block = int(inputs.block[0, 0])
            wanted = [min([*row.nonzero()[:, 0].tolist(), block]) for row in canvas.committed]
            begun.append(wanted)
            entered = ForwardPass(parts, plan, canvas, inputs).enter().positions
            first = wanted if apart else [min(wanted)] * ROWS
            for row, start in zip(entered.tolist(), first, strict=True):
                planned = range(int(inputs.window[0, 0]), block + plan.block)
                assert row == [max(position, start) for position in planned]
        step(parts, plan, canvas, inputs)

    engine.step_function = Around(watched)
    engine.generate(prompts(ROWS))
    assert len(begun) == 2
    assert any(len(set(wanted)) > 1 for wanted in begun)  # the rows had committed at different places


def test_rows_with_blocks_at_different_places_are_clamped_by_their_own(build: Build) -> None:
    """Where a row committed nothing left of its block, the window begins at that."""
    tokens = torch.full((3, 12), 254)
    spec = build("llada-0", "vanilla").model.spec
    cpu = torch.device("cpu")
    canvas = Canvas.of(tokens, tokens > 0, torch.zeros(3).long(), spec, 1, cpu, torch.float32, apart=True)
    canvas.committed[0, 5] = canvas.committed[1, [3, 7]] = canvas.committed[2, 11] = True
    block = torch.tensor([[6], [8], [4]]) + torch.arange(4)
    assert canvas.leftmost_committed().minimum(block[:, :1]).tolist() == [[5], [3], [4]]
    assert canvas.leftmost_committed().tolist() == [[5], [3], [11]]
    canvas.committed.zero_()
    assert canvas.leftmost_committed().tolist() == [[12]] * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_one_at_a_time_a_row_that_stands_apart_is_the_row_alone(name: str, build: Build, apart: bool) -> None:
    """In lockstep the window that trails a block is the longest of any row, and what it computes anew is another's."""
    rows = prompts(ROWS)
    engine = build(name, "es-dllm", **ONCE)
    batch = engine.generate(rows).tokens
    alone = [torch.equal(engine.generate(rows[row : row + 1]).tokens[0], batch[row]) for row in range(ROWS)]
    assert all(alone) is apart
