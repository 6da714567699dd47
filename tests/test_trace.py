"""The trace's laws: it is what the run did, tracing changes nothing, the page is one file that shows it."""

from __future__ import annotations

import json
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from runs import Build, Watch, prompts

from esdllm import Engine, UnavailableError
from esdllm.measure.tracing import Trace, trace
from esdllm.measure.tracing.trace import spans
from esdllm.runtime.run import StepFunction
from esdllm.runtime.variation import relative_variation
from esdllm.testing import tiny_model
from esdllm.testing.tape import record_steps

PRESETS = ("vanilla", "prefix-cache", "dual-cache", "es-dllm", "es-dllm-parallel", "dual-cache-parallel")
OTHERS = (
    {"blocks": {"name": "sliding"}},
    {"blocks": {"name": "own"}},
    {"blocks": {"name": "pruned"}},
    {"refresh": {"name": "partial", "prompt_refresh": 4, "block_refresh": 2}},
    {"refresh": {"name": "drift"}},
    {"refresh": {"name": "delayed"}, "skip": {"name": "none"}},
    {"cache": {"name": "sparse"}},
    {"cache": {"name": "int8"}},
    {"skip": {"name": "decay"}},
    {"cfg_scale": 1.0},
)
PROMPT = prompts()[0].tolist()


@pytest.fixture(scope="module")
def build(catalogue, llada, dream) -> Build:
    return Build({"llada-0": llada, "dream-0": dream}, catalogue)


@pytest.fixture(scope="module", params=["llada-0", "dream-0"])
def name(request) -> str:
    return request.param


def traced(engine: Engine, **options: Any) -> Trace:
    return trace(engine, PROMPT, name="one", model="random", timed=False, **options)


class Writes:
    """A cache store that keeps what is written into its cache: layer, positions, values."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.seen = inner, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def allocate(self, shape: Any) -> Any:
        cache, seen = self.inner.allocate(shape), self.seen

        class Cache:
            def __getattr__(self, name: str) -> Any:
                return getattr(cache, name)

            def update(self, write: Any) -> Any:
                seen.append((write.layer, write.positions[0].clone(), write.values[0].flatten(1).clone()))
                return cache.update(write)

        return Cache()


def by_steps(writes: list[Any], n_layers: int) -> list[list[Any]]:
    assert len(writes) % n_layers == 0
    return [writes[i : i + n_layers] for i in range(0, len(writes), n_layers)]


def untraced(engine: Engine) -> tuple[Watch, list[list[Any]]]:
    """The records of a run, and each step's writes."""
    store, watch = Writes(engine.components.cache), Watch()
    other = Engine(engine.model, engine.config, attrs.evolve(engine.components, cache=store), engine.step_function)
    other.generate([PROMPT], observers=[watch])
    return watch, by_steps(store.seen, engine.model.spec.n_layers)


# the data


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_computed_positions_are_those_written_into_the_cache(build, name, preset):
    engine = build(name, preset)
    found, (watch, written) = traced(engine), untraced(engine)
    assert len(found.steps) == len(written) == len(watch.records)
    for step, layers in zip(found.steps, written, strict=True):
        for layer, positions, _ in layers:
            assert np.flatnonzero(step.depth > layer).tolist() == sorted(set(positions.tolist()))


@pytest.mark.slow
@pytest.mark.parametrize("over", OTHERS, ids=str)
def test_other_policies_are_traced_as_they_run(build, name, over):
    engine = build(name, "es-dllm-parallel", **over)
    found, (watch, written) = traced(engine), untraced(engine)
    assert len(found.steps) == len(written) == len(watch.records)
    for i, (step, layers) in enumerate(zip(found.steps, written, strict=True)):
        assert found.canvas(i + 1).tolist() == watch.tokens[i + 1][0].tolist()
        for layer, positions, _ in layers:
            assert np.flatnonzero(step.depth > layer).tolist() == sorted(set(positions.tolist()))


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("site", ["hidden", "query", "key", "value"])
def test_the_number_computed_is_the_plans(build, name, preset, site):
    over = {"importance": {"site": site}} if preset.startswith("es-dllm") else {}
    engine = build(name, preset, **over)
    found, (watch, _) = traced(engine), untraced(engine)
    assert over or site != "hidden" or all(step.kind != "skip" for step in found.steps)
    for step, record in zip(found.steps, watch.records, strict=True):
        assert step.keep == record.plan.keep
        planned = record.plan.computed if site == "hidden" else record.plan.keep
        computed = [int((step.depth > layer).sum()) for layer in range(len(step.keep))]
        assert record.plan.clamped or computed == list(planned)


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_commits_are_the_changes_of_the_tokens(build, name, preset):
    engine = build(name, preset)
    found, (watch, _) = traced(engine), untraced(engine)
    for i, step in enumerate(found.steps):
        before, after = watch.tokens[i][0], watch.tokens[i + 1][0]
        changed = (before != after).nonzero()[:, 0].tolist()
        assert step.committed == {column: int(after[column]) for column in changed}
        assert found.canvas(i + 1).tolist() == after.tolist()
    assert found.canvas(0).tolist() == watch.tokens[0][0].tolist()
    assert found.start == len(PROMPT)


def test_revoked_columns_are_masks_again(build):
    engine = build("llada-0", "es-dllm-parallel", unmasking={"name": "wino"}, refresh={"name": "every-step"})
    found, (watch, _) = traced(engine), untraced(engine)
    assert any(step.revoked for step in found.steps)
    for i, step in enumerate(found.steps):
        assert found.canvas(i + 1).tolist() == watch.tokens[i + 1][0].tolist()
        assert list(step.revoked) == watch.revoked[i][0].nonzero()[:, 0].tolist()


def test_variation_of_values_is_against_what_was_last_written(build, name):
    engine = build(name, "es-dllm")
    found, (_, written) = traced(engine), untraced(engine)
    held: dict[tuple[int, int], torch.Tensor] = {}
    for step, layers in zip(found.steps, written, strict=True):
        expected = np.full(step.change.shape, np.nan, dtype=np.float32)
        for layer, positions, values in layers:
            for position, value in zip(positions.tolist(), values, strict=True):
                if (layer, position) in held:
                    expected[layer, position] = relative_variation(value, held[layer, position])
            held |= {(layer, p): value for p, value in zip(positions.tolist(), values, strict=True)}
        np.testing.assert_allclose(step.change, expected, rtol=1e-4, atol=1e-6)


def test_the_survivors_of_a_layer_are_its_most_important(build, name):
    for step in traced(build(name, "es-dllm")).steps:
        for one in step.scored:
            alive, survived = np.flatnonzero(step.depth > one.layer), np.flatnonzero(step.depth > one.layer + 1)
            assert np.flatnonzero(np.isfinite(one.importance)).tolist() == alive.tolist()
            dropped = np.setdiff1d(alive, survived)
            above = [p for p in survived if one.importance[p] >= one.importance[dropped].max()]
            assert len(above) >= len(survived) - 1  # the leftmost mask survives whatever its score


def test_a_layer_that_drops_nothing_is_not_scored(build, name):
    for step in traced(build(name, "es-dllm")).steps:
        drops = [layer for layer, (a, b) in enumerate(zip(step.keep, step.keep[1:], strict=False), 1) if b < a]
        first = [0] if step.keep[0] < (step.depth > 0).sum() else []
        assert [one.layer for one in step.scored] == first + drops


def test_a_scorer_without_history_tells_no_variation(build):
    steps = traced(build("llada-0", "es-dllm", importance={"name": "confidence"})).steps
    scored = [one for step in steps for one in step.scored]
    assert scored
    assert all(np.isnan(one.variation).all() for one in scored)


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_committed_was_a_candidate(build, name, preset):
    found = traced(build(name, preset))
    for step in found.steps:
        candidates = {one.column: one for one in step.candidates}
        for column, token in step.committed.items():
            assert candidates[column].token == token
        for one in step.candidates:
            assert step.depth[one.column - found.shift] == found.n_layers
            assert one.best[0] == pytest.approx((one.token, one.confidence), abs=1e-5)


@pytest.mark.slow
def test_refreshes_are_those_of_the_refresh_policy(build, name):
    steps = traced(build(name, "es-dllm")).steps  # of the prompt every 8 steps, of the block every 4
    assert [step.kind for step in steps] == ["refresh" if step.step % 4 == 0 else "skip" for step in steps]
    assert {step.window for step in steps if step.step % 8 == 0 and step.step} == {"prefix"}
    assert {step.kind for step in traced(build(name, "vanilla")).steps} == {"refresh"}
    dual = traced(build(name, "dual-cache")).steps
    assert [step.kind for step in dual] == ["reuse" if step.step_in_block else "refresh" for step in dual]


def test_tracing_changes_neither_tokens_nor_components(build, name):
    engine = build(name, "es-dllm")
    before, components = engine.generate([PROMPT]).tokens, engine.components
    found = traced(engine)
    assert found.canvas(len(found.steps)).tolist() == before[0].tolist()
    assert engine.components is components
    assert torch.equal(engine.generate([PROMPT]).tokens, before)


def test_the_seed_is_the_runs(build):
    engine = build("llada-0", "es-dllm", sampler={"temperature": 1.0})
    found = [traced(engine, seed=seed) for seed in (3, 4)]
    for seed, one in zip((3, 4), found, strict=True):
        expected = engine.generate([PROMPT], seed=seed).tokens[0]
        assert one.canvas(len(one.steps)).tolist() == expected.tolist()


def test_times_are_of_every_step_and_told_as_they_pass(build):
    told: list[tuple[str, int, int]] = []
    engine = build("llada-0", "es-dllm")
    found = trace(engine, PROMPT, watch=lambda *facts: told.append(facts))
    assert all(step.seconds is not None and step.seconds > 0 for step in found.steps)
    assert found.seconds == pytest.approx(sum(step.seconds or 0 for step in found.steps))
    assert [stage for stage, decided, _ in told if decided == 0] == ["tracing", "timing"]
    assert told[-1][1:] == (24, 24)
    assert traced(engine).seconds is None


@pytest.mark.slow
def test_a_compiled_engine_is_traced_without_and_timed_after_its_compilation(build):
    told: list[str] = []
    engine = build("llada-0", "vanilla", compile=True, gen_length=8)
    engine.step_function = StepFunction(True, backend="eager")
    found = trace(engine, PROMPT, watch=lambda stage, decided, _: told.append(stage) if decided == 0 else None)
    assert told == ["tracing", "compiling", "timing"]
    assert found.config["compile"] is True
    assert found.seconds is not None
    assert found.seconds < engine.step_function.seconds_compiling


@pytest.mark.slow
def test_an_engine_that_records_steps_is_timed_where_all_are_replayed(build):
    stages: list[tuple[str, int]] = []
    engine = build("llada-0", "es-dllm", gen_length=16)
    tape = record_steps(engine)
    found = trace(engine, PROMPT, watch=lambda stage, *_: stages.append((stage, sum(tape.replays))))
    assert found.seconds is not None
    replayed = [number for stage, number in stages if stage == "timing"]
    assert replayed[-1] - replayed[0] == len(found.steps)


def test_a_device_without_values_cannot_be_traced(catalogue):
    engine = Engine.build(tiny_model(device="meta"), catalogue.configure("es-dllm"), catalogue)
    with pytest.raises(UnavailableError, match="the device 'meta' computes no values, so there is nothing to trace"):
        trace(engine, [1, 2, 3])


def test_layer_share_is_the_engines_where_no_window_repeats_a_position(build, name):
    engine = build(name, "dual-cache")
    assert traced(engine).layer_share == pytest.approx(engine.generate([PROMPT]).layer_share)


@pytest.mark.parametrize(
    ("positions", "expected"), [([], []), ([3], [[3, 3]]), ([0, 1, 2, 5, 7, 8], [[0, 2], [5, 5], [7, 8]])]
)
def test_spans_cover_positions(positions, expected):
    assert spans(np.array(positions, dtype=np.int64)) == expected


def test_the_dict_says_what_the_trace_says(build, name):
    found = traced(build(name, "es-dllm"))
    told = json.loads(json.dumps(found.to_dict()))
    assert told["config"] == found.config
    for step, one in zip(told["steps"], found.steps, strict=True):
        for layer, ranges in enumerate(step["computed"]):
            positions = [p for first, last in ranges for p in range(first, last + 1)]
            assert positions == np.flatnonzero(one.depth > layer).tolist()
        assert dict(step["committed"]) == one.committed
        values = [x for row in step["value_change"] for x in row["values"]]
        np.testing.assert_allclose(values, one.change[np.isfinite(one.change)], rtol=1e-3)
