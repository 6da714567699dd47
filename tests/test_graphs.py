"""The laws of recording steps as graphs. What is recorded on a GPU is here recorded on a tape of operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from helpers import CASES, offers
from runs import MODELS, MODES, Build, Watch, prompts

from esdllm import (
    Candidates,
    Catalogue,
    Engine,
    InputError,
    KeyValue,
    PluginError,
    SampleView,
    load_model,
)
from esdllm.runtime import graphs
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.run import StepFunction
from esdllm.testing.tape import Tape, record_steps
from esdllm_backends.attention.sdpa import SdpaAttention
from esdllm_policies.sampling import GumbelSampler


class Again(Tape):
    """Records by noting the function, and replays by calling it: what is compiled cannot be compiled under a tape."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.replays.append(0)
        return work


def canvases(engine: Engine) -> list[Canvas]:
    """Return the canvases that an engine keeps."""
    return list(engine._standing._canvases.values())


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("preset", [*MODES, "es-dllm-parallel"])
def test_recorded_steps_decode_what_steps_decode(model: str, preset: str, build: Build) -> None:
    engine, expected = build(model, preset), build(model, preset)
    tape = record_steps(engine)
    for seed in (0, 1, 2):
        found, given = engine.generate(prompts(2, seed=seed)), expected.generate(prompts(2, seed=seed))
        assert torch.equal(found.tokens, given.tokens)
        assert found.forwards == given.forwards
    assert sum(tape.replays) > 0


def test_the_next_prompts_of_a_form_record_nothing_anew(build: Build) -> None:
    engine, watch = build("llada-0", "es-dllm"), Watch()
    tape = record_steps(engine)
    engine.generate(prompts(2), observers=[watch])
    engine.generate(prompts(2, seed=1), observers=[watch])
    plans = [record.plan for record in watch.records]
    assert len(tape.replays) == len(set(plans))
    assert sum(tape.replays) == len(plans) - len(set(plans))  # the first of each plan runs as it is
    engine.generate(prompts(2, seed=2), observers=[Watch()])
    assert len(tape.replays) == len(set(plans))


@pytest.mark.slow
def test_another_canvas_over_the_same_cache_is_recorded_anew(build: Build) -> None:
    """Observers are told more, which the canvas holds and the cache does not."""
    engine, expected = build("llada-0", "es-dllm"), build("llada-0", "es-dllm")
    record_steps(engine)
    for seed, watched in enumerate((False, True, False, True)):
        found = engine.generate(prompts(2, seed=seed), observers=[Watch()] if watched else [])
        assert torch.equal(found.tokens, expected.generate(prompts(2, seed=seed)).tokens)


@pytest.mark.slow
def test_padded_prompts_and_another_form_decode_as_without_recording(build: Build) -> None:
    engine, expected = build("dream-0", "es-dllm"), build("dream-0", "es-dllm")
    record_steps(engine)
    lists = [prompts(1, length).tolist()[0] for length in (12, 7, 9)]
    for given in (lists, lists[::-1], lists[:2], lists):
        assert torch.equal(engine.generate(given).tokens, expected.generate(given).tokens)


@pytest.mark.slow
def test_a_compiled_step_is_recorded_as_an_eager_one_and_compiled_once_a_plan(build: Build) -> None:
    engine, watch = build("llada-shallow", "es-dllm", gen_length=16), Watch()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    tape = Again()
    engine.step_function = StepFunction(compiled=True, backend="eager", graphs=tape)
    found = engine.generate(prompts(2), observers=[watch])
    assert torch.equal(found.tokens, build("llada-shallow", "es-dllm", gen_length=16).generate(prompts(2)).tokens)
    plans = {record.plan for record in watch.records}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(plans)
    assert 0 < len(tape.replays) <= len(plans)


@pytest.mark.slow
def test_a_canvas_takes_over_one_of_its_form_only(build: Build) -> None:
    engine = build("llada-0", "es-dllm")
    record_steps(engine)
    engine.generate(prompts(2))
    (canvas,) = canvases(engine)
    engine.generate(prompts(2, seed=1))
    assert canvases(engine) == [canvas]
    for rows, length in ((3, 12), (2, 40)):
        before = canvas.tokens.clone()
        engine.generate(prompts(rows, length))
        assert torch.equal(canvas.tokens, before)


def test_what_cannot_be_recorded_runs_without_and_says_so_once(build: Build) -> None:
    class Failing(Tape):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    engine, expected = build("llada-0", "es-dllm"), build("llada-0", "es-dllm")
    engine.step_function = StepFunction(compiled=False, graphs=Failing())
    why = "cannot be recorded as a CUDA graph, and runs without: operation not permitted"
    with pytest.warns(RuntimeWarning, match=why) as seen:
        found = [engine.generate(prompts(2, seed=seed)).tokens for seed in (0, 1)]
    assert len(seen) == 1
    for seed, tokens in enumerate(found):
        assert torch.equal(tokens, expected.generate(prompts(2, seed=seed)).tokens)


@attrs.frozen
class Waiting(SdpaAttention):
    """Attention that reads the device."""

    def attend(self, queries: torch.Tensor, read: KeyValue) -> torch.Tensor:
        assert float(queries.sum().item()) < float("inf")
        return SdpaAttention.attend(self, queries, read)


@attrs.frozen
class Listing(GumbelSampler):
    """A sampler that copies a constant from the host."""

    def sample(self, view: SampleView) -> Candidates:
        return GumbelSampler.sample(self, view._replace(raw=view.raw * torch.tensor([1.0])))


@pytest.mark.parametrize(
    ("hook", "offered", "settings", "why"),
    [
        ("esdllm_attention_backends", Waiting, {"attention": "mine"}, "attention Waiting: a step reads the device"),
        (
            "esdllm_token_samplers",
            Listing,
            {"sampler": "mine"},
            "sampler Listing: a step copies a constant from the host",
        ),
    ],
)
def test_what_cannot_be_recorded_is_named(hook: str, offered: type, settings: dict[str, Any], why: str) -> None:
    catalogue = Catalogue.load({"mine": offers(hook, {"mine": offered})})
    config = catalogue.configure("es-dllm", settings={"gen_length": 16, "block_length": 8, **settings})
    engine = Engine.build(load_model(CASES / "llada-0"), config, catalogue)
    record_steps(engine)
    with pytest.warns(RuntimeWarning, match=f"and runs without: {why}"):
        engine.generate(prompts(2))


def test_a_lack_of_memory_is_none_of_what_cannot_be_recorded(build: Build) -> None:
    class Full(Tape):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            raise torch.OutOfMemoryError("CUDA out of memory")

    engine = build("llada-0", "es-dllm")
    engine.step_function = StepFunction(compiled=False, graphs=Full())
    with pytest.raises(torch.OutOfMemoryError):
        engine.generate(prompts(2))


def test_a_store_that_cannot_be_called_in_a_compiled_step_is_not_recorded(build: Build) -> None:
    engine = build("llada-0", "es-dllm", cache="offloaded")
    tape = record_steps(engine)
    expected = build("llada-0", "es-dllm").generate(prompts(2)).tokens
    for _ in range(2):
        assert torch.equal(engine.generate(prompts(2)).tokens, expected)
    assert tape.replays == []
    assert not engine.step_function.recording


def test_closing_lets_go_of_canvas_cache_and_what_was_recorded(build: Build) -> None:
    engine = build("llada-0", "es-dllm")
    tape = record_steps(engine)
    found = engine.generate(prompts(2)).tokens
    assert engine.step_function.graphs is not None
    assert engine.step_function.graphs._known
    engine.close()
    assert canvases(engine) == []
    assert engine.cache is None
    assert engine.step_function.graphs._known == {}
    assert tape.forgotten > 0
    assert torch.equal(engine.generate(prompts(2)).tokens, found)


def test_without_recording_every_run_has_a_canvas_of_its_own(build: Build) -> None:
    engine = build("llada-0", "es-dllm")
    engine.generate(prompts(2))
    assert canvases(engine) == []
    assert engine.step_function.graphs is None


def test_a_replay_is_blind_to_tensors_passed_anew(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the inputs of each step in place of the recorded copies, nothing moves after the first replay."""
    monkeypatch.setattr(graphs, "_fill", lambda held, inputs: None)
    engine = build("llada-0", "es-dllm")
    record_steps(engine)
    with pytest.raises(PluginError, match="masks are left at the end of the run"):
        engine.generate(prompts(2))


def reading(x: torch.Tensor) -> None:
    x.add_(float(x.sum()))


def copying(x: torch.Tensor) -> None:
    x.add_(torch.tensor(2.0))


@pytest.mark.parametrize(("work", "why"), [(reading, "reads the device"), (copying, "copies a constant from the host")])
def test_what_a_gpu_could_not_record_the_tape_refuses(work: Callable[[torch.Tensor], None], why: str) -> None:
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match=why):
        Tape().record(lambda: work(x))
    assert torch.equal(x, torch.ones(3))


def test_recording_runs_nothing_and_a_replay_bakes_tensors_and_numbers() -> None:
    x, number = torch.ones(3), [2.0]
    holder = {"x": x}

    def work() -> None:
        doubled = holder["x"][1:].mul(number[0])
        holder["x"][:2].add_(doubled)
        holder["x"].copy_(torch.cat([doubled, holder["x"][:1]]))

    replay = Tape().record(work)
    assert torch.equal(x, torch.ones(3))
    number[0], holder["x"] = 100.0, torch.zeros(3)
    replay()
    assert x.tolist() == [2.0, 2.0, 3.0]
    replay()
    assert x.tolist() == [4.0, 6.0, 6.0]
    assert torch.equal(holder["x"], torch.zeros(3))


# warm


@pytest.mark.slow
def test_a_warm_engine_records_nothing_in_its_first_answer_and_makes_every_step_of_it_by_a_replay(build: Build) -> None:
    for model in MODELS:
        engine, expected, watch = build(model, "es-dllm"), build(model, "es-dllm"), Watch()
        tape = record_steps(engine)
        plans = engine.warm(2, 20)
        assert len(tape.replays) == plans > 1
        before = sum(tape.replays)
        found = engine.generate(prompts(2, 20))
        assert torch.equal(found.tokens, expected.generate(prompts(2, 20), observers=[watch]).tokens)
        assert plans == len({record.plan for record in watch.records})
        assert len(tape.replays) == plans
        assert sum(tape.replays) - before == found.forwards


@pytest.mark.slow
def test_a_warm_engine_compiles_nothing_in_its_first_answer(build: Build) -> None:
    engine = build("llada-0", "vanilla", gen_length=8)
    engine.step_function = StepFunction(compiled=True, backend="eager")
    torch._dynamo.reset()
    plans = engine.warm(2, 12)
    found = engine.generate(prompts(2))
    assert plans == len(engine.step_function._seen) > 1
    assert found.compile_seconds == 0.0
    assert torch.equal(found.tokens, build("llada-0", "vanilla", gen_length=8).generate(prompts(2)).tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
    "over",
    [{"cache": "sparse"}, {"cfg_scale": 1.0}, {"blocks": "sliding"}, {"refresh": "drift"}, {"unmasking": "wino"}],
    ids=str,
)
def test_a_warm_engine_decodes_as_another(build: Build, over: dict[str, Any]) -> None:
    engine, expected = build("llada-0", "es-dllm", **over), build("llada-0", "es-dllm", **over)
    record_steps(engine)
    assert engine.warm(1, 20) > 0
    for seed in range(2):
        assert torch.equal(engine.generate(prompts(1, 20, seed)).tokens, expected.generate(prompts(1, 20, seed)).tokens)


def test_where_the_logits_decide_what_a_step_commits_further_plans_come_with_the_answers(build: Build) -> None:
    engine, expected = build("llada-0", "es-dllm-parallel"), build("llada-0", "es-dllm-parallel")
    tape = record_steps(engine)
    assert engine.warm(2, 12) == len(tape.replays) > 0
    assert torch.equal(engine.generate(prompts(2)).tokens, expected.generate(prompts(2)).tokens)


def test_an_engine_without_compiled_or_recorded_steps_has_nothing_to_get_warm(build: Build) -> None:
    engine = build("llada-0", "es-dllm")
    assert engine.warm(2, 12) == 0
    assert engine.cache is None


@pytest.mark.parametrize(("rows", "length"), [(0, 4), (2, 0), (2, True), ("2", 4), (2.0, 4), (2, -1)])
def test_an_engine_gets_warm_for_whole_prompts(build: Build, rows: Any, length: Any) -> None:
    with pytest.raises(InputError, match="give whole numbers of at least 1"):
        build("llada-0", "es-dllm").warm(rows, length)
