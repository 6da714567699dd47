"""A benchmark over the real server: what it counts is what the engine says, and the server's own metrics are read."""

from __future__ import annotations

from typing import Any

import pytest

from esdllm import Engine
from esdllm.errors import UnavailableError
from esdllm.measure.benchmarking.serving import Load, ServerTarget, Wanted, bench_server
from esdllm.serving.session import Session

pytestmark = pytest.mark.covers

PROMPTS = ("Sort 3 1 2.", "Who are you?", "What is 12 + 7?")


@pytest.mark.slow
@pytest.mark.parametrize("load", [Load(concurrency=3), Load(rate=1000.0, burst=3)])
def test_a_benchmark_counts_what_the_engine_says(serve: Any, engine: Engine, load: Load) -> None:
    turns = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    expected = [engine.generate([turn], seed=0).answer_tokens for turn in turns]
    with Session.open(engine, slots=2, length=128) as session:
        target = ServerTarget.at(serve(session=session))
        (run,) = bench_server(target, [load], [Wanted(turn, 16) for turn in turns])
        assert run.errors == {}
        assert sorted(one.tokens for one in run.answered) == sorted(expected)
        assert all(one.first is not None for one in run.answered if one.tokens)
        assert session.state().running == 0


@pytest.mark.slow
def test_a_full_queue_is_told_as_429_and_the_slots_are_read(serve: Any, engine: Engine) -> None:
    with Session.open(engine, slots=1, length=256, max_queue=1) as session:
        target = ServerTarget.at(serve(session=session, keys=("sesame",)), key="sesame")
        (run,) = bench_server(target, [Load(rate=1000.0, burst=12)], [Wanted("Count.", 200)] * 12)
    assert set(run.errors) == {"429"}
    assert len(run.sound) + run.errors["429"] == 12
    assert len(run.sound) >= 1
    assert run.slots in (1, None)  # None where all was over before the first look


def test_a_server_with_keys_is_measured_by_who_has_one(serve: Any) -> None:
    with pytest.raises(UnavailableError, match="401 Unauthorized; its key is taken from ESDLLM_API_KEY"):
        ServerTarget.at(serve(keys=("sesame",)), key="other")
