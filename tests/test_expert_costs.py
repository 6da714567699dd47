"""What is counted of models with experts: the arithmetic of those that a position goes through, the bytes of those read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runs import CountingFlops

from esdllm import Catalogue, Engine, Model
from esdllm.checkpoints.loading import geometries, random_model
from esdllm.measure.cost import Costing
from esdllm.plan import Layout

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
SIZES |= {"head_dim": 8, "mask_token_id": 63, "eos_token_id": 62, "num_experts": 8, "num_experts_per_tok": 2}


def model(catalogue: Catalogue, name: str, **changes: Any) -> Model:
    return random_model({**geometries(catalogue)[name], **SIZES, **changes}, "cpu", "float32", catalogue)


def rnd1(catalogue: Catalogue, **changes: Any) -> Model:
    return model(catalogue, "rnd1-30b", moe_intermediate_size=24, intermediate_size=40, **changes)


def llada_moe(catalogue: Catalogue, **changes: Any) -> Model:
    own = {"expert_intermediate_size": 24, "dense_intermediate_size": 40, "moe_layer_freq": [0, 1, 1]}
    return model(catalogue, "llada-moe-7b", shared_expert_intermediate_size=16, **own, **changes)


@pytest.mark.parametrize("preset", ["vanilla", "dual-cache", "es-dllm"])
@pytest.mark.parametrize("make", [rnd1, llada_moe])
def test_counted_flops_are_those_that_torch_counts_of_rows_sorted_by_expert(
    make: Any, preset: str, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esdllm_models.feedforward.Experts.sorts", lambda self, rows: True)
    config = catalogue.configure(preset, sets=["gen_length=18", "block_length=6", "attention=eager"])
    engine = Engine.build(make(catalogue), config, catalogue)
    engine.step_function = counting = CountingFlops(engine.step_function)
    engine.generate(torch.randint(0, 60, (2, 7), generator=torch.Generator().manual_seed(0)))
    costing = Costing.of(engine.components, engine.model.spec, batch=2, length=25, itemsize=4)
    assert len(counting.found) == 18
    assert [flops for _, flops in counting.found] == [costing.step(plan).flops for plan, _ in counting.found]


@pytest.mark.parametrize("block", [1, 2, 6])
def test_experts_that_no_position_is_expected_to_go_through_are_not_read(catalogue: Catalogue, block: int) -> None:
    """An expert is left out by one position with a chance of 3/4, by n with (3/4)^n."""
    engine = Engine.build(
        rnd1(catalogue), catalogue.configure("dual-cache", sets=["gen_length=12", f"block_length={block}"]), catalogue
    )
    attention, expert = 2 * (4 + 2) * 8 * 32, 3 * 32 * 24
    numbers = 3 * (attention + 8 * expert) + 32 * 64  # of the linear layers
    costing = Costing.of(engine.components, engine.model.spec, 1, 16, 4, weights=4 * (numbers + 64 * 32))
    assert costing.weights == 4 * numbers
    steps = engine.planner(Layout.of(4, 12, 0)).forecast()
    for plan in {step.plan for step in steps}:
        positions = [plan.window, plan.window, plan.block if plan.narrow else plan.window]
        left_out = sum(8 * 0.75**n for n in positions)
        assert costing.step(plan).weights == pytest.approx(4 * (numbers - left_out * expert), rel=1e-6)
    if block == 1:  # of the last layer, whose block is one position, all but the 2 that it chooses
        assert costing.step(steps[0].plan).weights < 4 * (numbers - 6 * expert)
