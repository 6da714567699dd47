"""The runtime against a plain second writing of the method, where the recorded cases do not reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from oracle import Settings, oracle
from sampling import examples

from esdllm import Catalogue, Engine, Model

pytestmark = pytest.mark.no_cover  # whole generations of what other tests cover, which measuring slows by a third

KEEPS = (
    [[0, 1], [0.125, 0.5], [0.25, 0.25]],
    [[0, 1], [0.5, 0.3]],
    [[0, 0.75], [0.4, 0.5], [0.875, 0.25]],  # the first and the last layer drop too
    [[0, 1]],
)

plans = st.builds(
    Settings,
    gen_length=st.integers(1, 20),
    block_length=st.integers(1, 12),
    tokens_per_step=st.integers(1, 3),
    threshold=st.sampled_from([None, None, 0.3, 0.6]),
    prompt_refresh=st.integers(1, 24),
    block_refresh=st.integers(1, 12),
    keep=st.sampled_from(KEEPS),
    alpha=st.sampled_from([0.2, 0.5, 0.8]),
    site=st.sampled_from(["hidden", "query", "key", "value"]),
    delay_eos=st.booleans(),
)


def configured(catalogue: Catalogue, plan: Settings) -> Any:
    adaptive = {"name": "threshold", "threshold": plan.threshold}
    fixed = {"name": "top-k", "tokens_per_step": plan.tokens_per_step}
    return catalogue.configure(
        "es-dllm",
        settings={
            "gen_length": plan.gen_length,
            "block_length": plan.block_length,
            "delay_eos": plan.delay_eos,
            "early_stop": False,
            "refresh": {"prompt_refresh": plan.prompt_refresh, "block_refresh": plan.block_refresh},
            "skip": {"keep": plan.keep},
            "importance": {"alpha": plan.alpha, "site": plan.site},
            "unmasking": fixed if plan.threshold is None else adaptive,
        },
    )


@pytest.mark.parametrize("family", ["llada", "dream"])
@given(plan=plans, lengths=st.lists(st.integers(2, 7), min_size=1, max_size=2), seed=st.integers(0, 99))
@examples(200)
def test_any_plan_decodes_as_the_method_is_written(
    request: pytest.FixtureRequest, catalogue: Catalogue, family: str, plan: Settings, lengths: list[int], seed: int
) -> None:
    model: Model = request.getfixturevalue(family)
    draw = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(0, 250, (length,), generator=draw).tolist() for length in lengths]
    result = Engine.build(model, configured(catalogue, plan), catalogue).generate(prompts)
    tokens, forwards, margin = oracle(model.adapter, prompts, plan)
    assume(margin > 1e-4)  # where rounding decides, both may be right
    assert result.tokens.tolist() == tokens
    assert result.forwards == forwards
