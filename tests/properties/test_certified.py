"""The observer that says which commits a full computation would repeat."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from drawing import CATALOGUE, MASK, Settings, Shape, Watch, engine_of, policies, rows, shapes
from hypothesis import event, given
from sampling import examples
from torch import Tensor

from esdllm import ConfigError, Engine, InputError, UnmaskingView, load_model
from esdllm.runtime.plain import full_logits
from esdllm.testing.bounds.certified import Certified, Commit

ROUNDING = 1e-5  # RoPE's angles and products are float32
SHAPE = Shape("llada", 2, 2, 1, 4, 0)


class Spy:
    """An unmasking policy that notes the logits of what another one selects."""

    def __init__(self, policy: Any) -> None:
        self.policy, self.memory = policy, getattr(policy, "memory", 0)
        self.rows: list[Tensor] = []

    def counts(self, masked: int, blocks: int) -> Any:
        return self.policy.counts(masked, blocks)

    def remember(self, view: UnmaskingView) -> Tensor:
        found: Tensor = self.policy.remember(view)
        return found

    def select(self, view: UnmaskingView) -> Tensor:
        selected: Tensor = self.policy.select(view)
        self.rows.append(view.logits[selected])
        return selected


def spied(engine: Engine) -> Spy:
    spy = Spy(engine.components.unmasking)
    engine.components = attrs.evolve(engine.components, unmasking=spy)
    return spy


def unguided(chosen: Settings) -> Settings:
    return {**chosen, "cfg_scale": 0.0}


def greedy(chosen: Settings) -> Settings:
    return {**unguided(chosen), "sampler": {"name": "gumbel"}}


@given(shape=shapes(), prompts=rows, chosen=policies())
@examples(30)
def test_the_gap_is_that_of_the_logits_which_the_step_decided_by(
    shape: Shape, prompts: list[list[int]], chosen: Settings
) -> None:
    engine = engine_of(shape, greedy(chosen))
    spy, certified = spied(engine), Certified(engine, bound=False)
    engine.generate(prompts, observers=[certified])
    seen = torch.cat(spy.rows).clone()
    seen[:, MASK] = float("-inf")  # no candidate
    first, second = seen.topk(2, dim=-1).values.unbind(-1)
    found = torch.tensor([commit.gap for commit in certified.commits])
    torch.testing.assert_close(found, first - second, rtol=1e-4, atol=ROUNDING)
    assert all(commit.greedy for commit in certified.commits)


@given(shape=shapes(), prompts=rows, chosen=policies())
@examples(25)
def test_what_is_certified_is_what_a_full_pass_over_the_same_canvas_decides(
    shape: Shape, prompts: list[list[int]], chosen: Settings
) -> None:
    """At any temperature, and the shares are nested."""
    engine, watch = engine_of(shape, unguided(chosen)), Watch()
    certified, model = Certified(engine), engine.model.adapter
    engine.generate(prompts, observers=[watch, certified])
    made, padding = iter(certified.commits), watch.records[0].padding or (0,) * len(prompts)
    for before, after, committed in zip(watch.tokens, watch.tokens[1:], watch.committed, strict=False):
        for row, column in committed.nonzero().tolist():
            start, commit = padding[row], next(made)
            assert (commit.row, commit.column) == (row, column)
            with torch.inference_mode():
                logits = full_logits(model, before[row : row + 1, start:])[0, column - start - model.spec.logit_shift]
                logits[model.spec.mask_id] = float("-inf")  # no candidate
            assert commit.same == (int(logits.argmax()) == int(after[row, column]))
            assert commit.same or not commit.measured
            assert commit.measured or not commit.bounded
            assert commit.drift <= commit.bound + ROUNDING
            event(
                f"skipped, {'certified' if commit.measured else 'the same' if commit.same else 'other'}: {commit.skipped}"
            )
    assert next(made, None) is None
    shares = certified.shares()
    assert shares.commits == len(certified.commits) == chosen["gen_length"] * len(prompts)
    assert shares.same >= shares.measured >= shares.bounded


@given(shape=shapes(), prompts=rows, chosen=policies())
@examples(12)
def test_where_everything_is_computed_every_commit_is_certified(
    shape: Shape, prompts: list[list[int]], chosen: Settings
) -> None:
    computed = {**greedy(chosen), "refresh": "every-step"}
    without_a_cache = {name: value for name, value in computed.items() if name not in ("skip", "refresh", "importance")}
    for engine in (engine_of(shape, computed), engine_of(shape, without_a_cache, "vanilla")):
        certified = Certified(engine)
        engine.generate(prompts, observers=[certified])
        assert all(commit.drift < ROUNDING for commit in certified.commits)
        wide = [commit for commit in certified.commits if commit.gap > 4 * ROUNDING]
        assert all(commit.measured for commit in wide)
        assert certified.shares(skipped=True).commits == 0


def commit(step: int, gap: float = 1.0, drift: float = 0.0, **over: Any) -> Commit:
    return Commit(
        **{"step": step, "row": 0, "column": 0, "gap": gap, "drift": drift, "bound": 2 * drift, "skipped": False,
           "greedy": True, "same": True, **over}
    )  # fmt: skip


def test_a_step_counts_if_all_its_commits_do() -> None:
    certified = Certified(engine_of(SHAPE, {"gen_length": 8}), bound=False)
    certified.commits += [commit(0), commit(0, drift=0.3), commit(1, drift=0.6), commit(2, greedy=False, skipped=True)]
    assert certified.shares() == (4, 1.0, 2 / 4, 1 / 4)
    assert certified.shares(skipped=True) == (1, 1.0, 0.0, 0.0)
    assert certified.step_shares() == (3, 1.0, 1 / 3, 0.0)


def test_less_staleness_is_less_drift_and_a_lower_bound() -> None:
    over = {"gen_length": 8, "block_length": 8, "early_stop": False, "sampler": {"name": "gumbel"}}
    engine = engine_of(SHAPE, over)
    found = [Certified(engine, staleness=share) for share in (1e-6, 1e-4, 1e-2)]
    engine.generate([[1, 2, 3, 4]], observers=found)
    for less, more in zip(found, found[1:], strict=False):
        pairs = [(a, b) for a, b in zip(less.commits, more.commits, strict=True) if b.skipped]
        assert pairs
        assert all(a.bound < b.bound and a.drift < b.drift + ROUNDING for a, b in pairs)


def test_a_run_that_cannot_be_certified_is_refused_by_what_stands_in_the_way() -> None:
    with pytest.raises(ConfigError, match=r"cfg_scale = 1\.5: .* set cfg_scale = 0"):
        Certified(engine_of(SHAPE, {"cfg_scale": 1.5, "gen_length": 8}))
    sparse = engine_of(SHAPE, {"cache": "sparse", "gen_length": 8, "block_length": 8})
    with pytest.raises(ConfigError, match=r"'sparse' shows attention a part of what it holds.*choose cache"):
        sparse.generate([[1, 2, 3, 4]], observers=[Certified(sparse)])
    model = load_model("tiny-llada", "cpu", "float32", CATALOGUE, quantize="int8-weight-only")
    with pytest.raises(InputError, match=r"no bound for a Transformer: .*without quantize.*bound=False"):
        Certified(Engine.build(model, CATALOGUE.configure("es-dllm"), CATALOGUE))


def test_nothing_committed_is_no_share() -> None:
    shares = Certified(engine_of(SHAPE, {"gen_length": 8})).shares()
    assert shares.commits == 0
    assert shares.same != shares.same  # NaN
