"""Every registered policy decodes whole generations: a new one is covered here by being registered."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle, product
from typing import Any

import pytest
import torch
from runs import REFRESH, SHORT, Watch, compiled, prompts
from sampling import pairwise

from esdllm import Catalogue, Engine, Generation, Model

CATALOGUE = Catalogue.load()
FAMILIES = ("llada", "dream")
MODES: Mapping[str, Mapping[str, Any]] = {"vanilla": {}, "prefix-cache": {}, "dual-cache": {}, "es-dllm": REFRESH}
BRIEF: Mapping[str, Any] = {**SHORT, "gen_length": 16, "block_length": 8}

ACTING: Mapping[str, Mapping[str, Any]] = {
    "threshold": {"threshold": 0.02},
    "factor": {"factor": 3.8},
    "entropy-bound": {"gamma": 12.0},
    "klass": {"threshold": 0.01, "divergence": 5.0, "history": 1},
    "credit": {"threshold": 0.03},
    "longest-prefix": {"threshold": 0.01},
    "time-schedule": {"steps": 16},
    "p2": {"steps_per_block": 4},
}
"""options at which an unmasking policy commits several positions at some steps of a random model, if it ever does"""


def unmasking(name: str) -> dict[str, Any]:
    return {"unmasking": {"name": name, **ACTING.get(name, {})}}


@pytest.fixture
def build(request: pytest.FixtureRequest) -> Any:
    def make(family: str, mode: str, **over: Any) -> Engine:
        model: Model = request.getfixturevalue(family)
        return Engine.build(model, CATALOGUE.configure(mode, settings={**BRIEF, **MODES[mode], **over}), CATALOGUE)

    return make


def rows_of(padded: bool) -> list[list[int]]:
    return [prompts(1, length, seed=length)[0].tolist() for length in ((9, 4, 7) if padded else (7, 7, 7))]


def check(engine: Engine, rows: list[list[int]], length: int = BRIEF["gen_length"]) -> Generation:
    """Check that a run ends in time with no mask left, and that no committed token changes but what is put back or replaced."""
    watch = Watch()
    found = engine.generate(rows, observers=[watch])
    assert found.committed == length * len(rows)
    assert not (found.tokens == engine.model.spec.mask_id).any()
    revisions, edits = engine.components.can.revisions, engine.components.can.edits or 0
    blocks = -(-length // engine.config.block_length)
    assert 1 <= found.forwards <= length * (1 + revisions) + edits * blocks
    nothing = [torch.zeros_like(committed) for committed in watch.committed]
    changes = zip(watch.committed, watch.revoked or nothing, watch.edited or nothing, strict=True)
    for before, after, (committed, back, edited) in zip(watch.tokens, watch.tokens[1:], changes, strict=False):
        kept = ~committed & ~back & ~edited
        assert torch.equal(before[kept], after[kept])
        assert (after[back] == engine.model.spec.mask_id).all()
        assert (before[committed] == engine.model.spec.mask_id).all()
    return found


# ------------------------------------------------------------------------------------------------ whole generations


@pytest.mark.parametrize(
    ("name", "family", "mode", "padded"),
    pairwise(product(CATALOGUE.names("unmasking"), FAMILIES, MODES, (False, True))),
)
def test_every_unmasking_policy_decides_every_mask_in_every_mode(
    name: str, family: str, mode: str, padded: bool, build: Any
) -> None:
    found = check(build(family, mode, **unmasking(name)), rows_of(padded))
    assert found.forwards < BRIEF["gen_length"] or name not in ACTING or name == "time-schedule"


def _may_meet(refresh: str, decides: str) -> bool:
    """Whether a refresh policy that asks what was decided has an unmasking policy beside it that decides by the logits."""
    return refresh != "sub-block-cache" or decides == "threshold"


@pytest.mark.parametrize(
    ("refresh", "skip", "family", "decides"),
    pairwise(
        one
        for one in product(CATALOGUE.names("refresh"), CATALOGUE.names("skip"), FAMILIES, ("top-k", "threshold"))
        if _may_meet(one[0], one[3])
    ),
)
def test_every_skip_schedule_with_every_refresh_policy(
    refresh: str, skip: str, family: str, decides: str, build: Any
) -> None:
    chosen = {"name": refresh, **REFRESH["refresh"]} if refresh == "periodic" else refresh
    check(build(family, "es-dllm", refresh=chosen, skip=skip, **unmasking(decides)), rows_of(padded=True))


# ------------------------------------------------------------------------------------------------- laws of their own


@pytest.mark.parametrize("family", FAMILIES)
def test_under_longest_prefix_what_is_decided_of_a_block_is_always_one_piece_from_the_left(
    family: str, build: Any
) -> None:
    """Early skipping leaves masks without logits, which end a piece."""
    watch = Watch()
    build(family, "es-dllm", **unmasking("longest-prefix")).generate(prompts(2), observers=[watch])
    answer = watch.tokens[0][0] == 254
    for tokens in watch.tokens:
        masked = tokens[:, answer] == 254
        assert torch.equal(masked, masked.cummax(1).values)


def test_a_second_run_remembers_nothing_of_the_first(build: Any) -> None:
    for name in ("klass", "credit"):
        engine = build("llada", "dual-cache", **unmasking(name))
        first = engine.generate(prompts(2))
        engine.generate(prompts(2, seed=5))
        again = engine.generate(prompts(2))
        assert torch.equal(again.tokens, first.tokens)
        assert again.forwards == first.forwards


# --------------------------------------------------------------------------------------- what the step may not do

KERNELS = list(zip(cycle(CATALOGUE.names("importance")), CATALOGUE.names("unmasking"), strict=False))
"""every importance scorer and every unmasking policy, two to a step"""


def test_the_kernels_that_are_compiled_are_all_that_there_are() -> None:
    scorers, policies = map(set, zip(*KERNELS, strict=True))
    assert (scorers, policies) == (set(CATALOGUE.names("importance")), set(CATALOGUE.names("unmasking")))


@pytest.mark.slow
@pytest.mark.parametrize(("scorer", "policy"), KERNELS)
def test_every_kernel_compiles_into_one_graph_a_plan_with_eager_s_tokens(scorer: str, policy: str, build: Any) -> None:
    small = {"gen_length": 3, "block_length": 3}
    engine = build("shallow", "es-dllm", **small, importance=scorer, **unmasking(policy))
    eager = engine.generate(prompts(2))
    found, graphs, plans = compiled(engine, prompts(2))
    assert torch.equal(found.tokens, eager.tokens)
    assert graphs == len(plans)
