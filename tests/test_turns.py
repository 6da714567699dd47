"""One engine makes one run at a time: threads queue, and a run that asks its own engine for another is refused."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread
from typing import Any

import pytest
import torch
from runs import Build, Watch, prompts

from esdllm import Engine, InputError, Pipeline

REFUSED = "is decoding already; close its open stream first, or make another"


@pytest.fixture
def engine(build: Build) -> Engine:
    return build("llada-0", "es-dllm", gen_length=4, block_length=4)


def in_threads(work: Callable[[int], Any], count: int = 6, threads: int = 4) -> list[Any]:
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, range(count)))


@pytest.mark.slow
@pytest.mark.parametrize("store", ["dense", "offloaded"])
def test_threads_get_the_answers_that_they_get_one_after_the_other(build: Build, store: str) -> None:
    engine = build("llada-0", "es-dllm", gen_length=8, cache=store)
    asked = [prompts(1 + number % 2, 5 + number % 3, seed=number) for number in range(6)]
    expected = [engine.generate(rows).tokens for rows in asked]
    found = in_threads(lambda number: engine.generate(asked[number]).tokens)
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


def test_pipelines_of_one_engine_and_streams_queue_too(engine: Engine, build: Build) -> None:
    pipes = [Pipeline(engine, build.catalogue), Pipeline(engine, build.catalogue)]
    asked = [prompts(1, 4 + number, seed=number)[0].tolist() for number in range(8)]
    expected = [pipes[0]([ids])[0].tokens for ids in asked]

    def ask(number: int) -> Any:
        pipe = pipes[number % 2]
        return list(pipe.stream(asked[number]))[-1].settled if number % 3 else pipe([asked[number]])[0].tokens

    assert in_threads(ask, 8) == expected


@pytest.mark.parametrize("moment", ["start", "step", "end"])
@pytest.mark.parametrize("ask", ["generate", "close", "stream"])
def test_an_observer_that_asks_its_own_engine_is_refused(engine: Engine, build: Build, moment: str, ask: str) -> None:
    calls: dict[str, Callable[[], object]] = {
        "generate": lambda: engine.generate([[1, 2]]),
        "close": engine.close,
        "stream": lambda: Pipeline(engine, build.catalogue).stream([1, 2]),
    }
    watch: Any = Watch()
    setattr(watch, moment, lambda *_: calls[ask]())
    expected = engine.generate([[3, 4, 5]]).tokens
    with pytest.raises(InputError, match=REFUSED):
        engine.generate([[3, 4, 5]], observers=[watch])
    assert engine.generate([[3, 4, 5]]).tokens.equal(expected)  # and the engine is whole after it


def test_an_observer_may_ask_another_engine_of_the_same_model(engine: Engine, build: Build) -> None:
    other, found = build("llada-0", "es-dllm", gen_length=2, block_length=2), []
    watch: Any = Watch()
    watch.step = lambda record: found.append(other.generate([[1, 2]]).tokens)
    expected, alone = engine.generate([[3, 4, 5]]).tokens, other.generate([[1, 2]]).tokens
    assert engine.generate([[3, 4, 5]], observers=[watch]).tokens.equal(expected)
    assert all(one.equal(alone) for one in found)


def test_the_reader_of_a_stream_is_refused_and_another_thread_waits_for_its_end(engine: Engine, build: Build) -> None:
    pipe, done, found = Pipeline(engine, build.catalogue), Event(), []
    expected = engine.generate([[1, 2]]).tokens
    with pipe.stream([7, 8, 9]) as stream:
        next(stream)
        for ask in (lambda: pipe([[1, 2]]), lambda: engine.generate([[1, 2]]), lambda: pipe.stream([1]), engine.close):
            with pytest.raises(InputError, match=REFUSED):
                ask()
        other = Thread(target=lambda: (found.append(engine.generate([[1, 2]]).tokens), done.set()))
        other.start()
        assert not done.wait(0.1)
        next(stream)
    assert done.wait(10)
    other.join()
    assert torch.equal(found[0], expected)


def test_an_error_and_a_stream_that_is_dropped_leave_the_turn_to_others(engine: Engine, build: Build) -> None:
    pipe = Pipeline(engine, build.catalogue)
    expected = engine.generate([[1, 2]]).tokens
    with pytest.raises(InputError, match="outside the vocabulary"):
        engine.generate([[999]])
    with pytest.raises(InputError, match="outside the vocabulary"):
        list(pipe.stream([999]))
    pipe.stream([7, 8, 9])
    watch: Any = Watch()
    watch.step = lambda record: 1 / 0
    with pytest.raises(ZeroDivisionError):
        engine.generate([[1, 2]], observers=[watch])
    assert in_threads(lambda _: engine.generate([[1, 2]]).tokens.equal(expected), 2) == [True, True]
