"""The laws of recording steps as graphs. What is recorded on a GPU is here a function that is called again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from runs import MODELS, MODES, Build, Watch, prompts

from esdllm import Engine
from esdllm.run import StepFunction


class Recorder:
    """Stands for CUDA: notes what is recorded, runs nothing then, and calls it when it is replayed."""

    def __init__(self) -> None:
        self.replays: list[int] = []
        self.forgotten = 0

    def prepare(self, work: Callable[[], None]) -> None:
        work()

    def forget(self) -> None:
        self.forgotten += 1

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.replays.append(0)
        number = len(self.replays) - 1

        def replay() -> None:
            self.replays[number] += 1
            work()

        return replay


def recorded(engine: Engine, compiled: bool = False) -> Recorder:
    """Let an engine's steps be recorded."""
    recorder = Recorder()
    engine.step_function = StepFunction(compiled, backend="eager", graphs=recorder)
    return recorder


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("preset", [*MODES, "es-dllm-parallel"])
def test_recorded_steps_decode_what_steps_decode(model: str, preset: str, build: Build) -> None:
    engine, expected = build(model, preset), build(model, preset)
    recorder = recorded(engine)
    for seed in (0, 1, 2):
        found, given = engine.generate(prompts(2, seed=seed)), expected.generate(prompts(2, seed=seed))
        assert torch.equal(found.tokens, given.tokens)
        assert (found.forwards, found.layer_work) == (given.forwards, given.layer_work)
    assert sum(recorder.replays) > 0


def test_the_next_prompts_of_a_form_record_nothing_anew(build: Build) -> None:
    engine, watch = build("llada-0", "es-dllm"), Watch()
    recorder = recorded(engine)
    engine.generate(prompts(2), observers=[watch])
    engine.generate(prompts(2, seed=1), observers=[watch])
    plans = [record.plan for record in watch.records]
    assert len(recorder.replays) == len(set(plans))
    assert sum(recorder.replays) == len(plans) - len(set(plans))  # the first of each plan runs as it is
    engine.generate(prompts(2, seed=2), observers=[Watch()])
    assert len(recorder.replays) == len(set(plans))


def test_padded_prompts_and_another_form_decode_as_without_recording(build: Build) -> None:
    engine, expected = build("dream-0", "es-dllm"), build("dream-0", "es-dllm")
    recorded(engine)
    lists = [prompts(1, length).tolist()[0] for length in (12, 7, 9)]
    for given in (lists, lists[::-1], lists[:2], lists):
        assert torch.equal(engine.generate(given).tokens, expected.generate(given).tokens)


def test_a_compiled_step_is_recorded_as_an_eager_one_and_compiled_once_a_plan(build: Build) -> None:
    engine, watch = build("llada-0", "es-dllm", gen_length=16), Watch()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    recorder = recorded(engine, compiled=True)
    found = engine.generate(prompts(2), observers=[watch])
    assert torch.equal(found.tokens, build("llada-0", "es-dllm", gen_length=16).generate(prompts(2)).tokens)
    plans = {record.plan for record in watch.records}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(plans)
    assert 0 < len(recorder.replays) <= len(plans)


def test_a_canvas_takes_over_one_of_its_form_only(build: Build) -> None:
    engine = build("llada-0", "es-dllm")
    recorded(engine)
    engine.generate(prompts(2))
    canvas = engine._canvas
    assert canvas is not None
    engine.generate(prompts(2, seed=1))
    assert engine._canvas is canvas
    for rows, length in ((3, 12), (2, 13)):
        before = canvas.tokens.clone()
        engine.generate(prompts(rows, length))
        assert engine._canvas is not canvas
        assert torch.equal(canvas.tokens, before)


def test_what_cannot_be_recorded_runs_without_and_says_so_once(build: Build) -> None:
    class Failing(Recorder):
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


def test_a_store_that_cannot_be_called_in_a_compiled_step_is_not_recorded(build: Build) -> None:
    engine = build("llada-0", "es-dllm", cache="offloaded")
    recorder = recorded(engine)
    expected = build("llada-0", "es-dllm").generate(prompts(2)).tokens
    for _ in range(2):
        assert torch.equal(engine.generate(prompts(2)).tokens, expected)
    assert recorder.replays == []
    assert not engine.step_function.recording


def test_closing_lets_go_of_canvas_cache_and_what_was_recorded(build: Build) -> None:
    engine = build("llada-0", "es-dllm")
    recorder = recorded(engine)
    found = engine.generate(prompts(2)).tokens
    assert engine.step_function.graphs is not None
    assert engine.step_function.graphs._known
    engine.close()
    assert engine._canvas is None
    assert engine.cache is None
    assert engine.step_function.graphs._known == {}
    assert engine.step_function.graphs._owner is None
    assert recorder.forgotten > 0
    assert torch.equal(engine.generate(prompts(2)).tokens, found)


def test_without_recording_every_run_has_a_canvas_of_its_own(build: Build) -> None:
    engine = build("llada-0", "es-dllm")
    engine.generate(prompts(2))
    assert engine._canvas is None
    assert engine.step_function.graphs is None
