"""Benchmarks of serving: traffic is what was drawn, every request is accounted for, numbers follow from what was heard."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.text import Text

from esdllm import Catalogue, Engine
from esdllm.checkpoints.loading import load_model
from esdllm.cli.bench_serve_tables import latency_table
from esdllm.errors import InputError, UnavailableError
from esdllm.measure.benchmarking.serving import (
    Answered,
    Lengths,
    Load,
    Looked,
    Pending,
    Percentiles,
    ServeReport,
    ServerTarget,
    ServeRun,
    SessionTarget,
    StaticBatches,
    Wanted,
    bench_engine,
    bench_server,
    drawn,
    drive,
    percentiles,
    read_wanted,
    static_batches,
)
from esdllm.measure.benchmarking.serving.plots import plot_serving
from esdllm.serving.requests import Completion, FinishReason, Request, Update
from esdllm.serving.session import Session
from esdllm.testing.models import tiny_model

Run = Callable[..., tuple[int, str, str]]

# traffic


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("64", 64, 64),
        ("16:256", 16, 256),
        ("1:1", 1, 1),
        ("lognormal:64:0.8:256", 1, 256),
        ("lognormal:64:0:64", 64, 64),
    ],
)
def test_lengths_are_drawn_within_their_ends_and_named_as_they_were(text, low, high):
    lengths = Lengths.parse(text)
    found = [lengths.draw(Random(seed)) for seed in range(500)]
    assert low <= min(found) <= max(found) <= high
    assert str(Lengths.parse(str(lengths))) == str(lengths)
    assert low == high or len(set(found)) > 3


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "0",
            "-3",
            "a",
            "1.5",
            "5:4",
            "0:4",
            "1:2:3",
            "16:",
            ":",
            "normal:3:4",
            "lognormal:64",
            "lognormal:64:0.8",
        ),
        *("lognormal:0:1:9", "lognormal:64:-1:9", "lognormal:64:0.8:0", "lognormal:nan:1:9", "lognormal:64:inf:9"),
        *("lognormal:64:0.8:9:9", "lognormal:64:0.8:2.5"),
    ],
)
def test_lengths_that_are_none_are_refused_with_what_would_do(text):
    with pytest.raises(InputError, match=r"write one such as 64, a range such as 16:256"):
        Lengths.parse(text)


def test_lognormal_lengths_have_their_median_and_spread():
    lengths = Lengths.parse("lognormal:100:0.5:100000")
    random = Random(0)
    logs = np.log([lengths.draw(random) for _ in range(4000)])
    assert np.median(logs) == pytest.approx(math.log(100), abs=0.05)
    assert logs.std() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("burst", [1, 4, 7])
def test_open_loops_come_at_their_rate_in_bursts(burst):
    arrivals = Load(rate=5.0, burst=burst).arrivals(7000, seed=1)
    assert len(arrivals) == 7000
    assert arrivals[0] == 0
    assert arrivals == sorted(arrivals)
    assert 7000 / arrivals[-1] == pytest.approx(5.0, rel=0.1)
    moments, counts = np.unique(arrivals, return_counts=True)
    assert set(counts[:-1]) == {burst}
    gaps = np.diff(moments)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)  # as of a Poisson process: no memory


def test_a_seed_draws_the_same_requests_and_arrivals_and_another_seed_others():
    lengths = Lengths.parse("4:9")
    one, same, other = (drawn(20, lengths, lengths, 60, seed, mask=7) for seed in (3, 3, 4))
    assert one == same != other
    assert drawn(5, lengths, lengths, 60, 3, mask=7) == one[:5]
    load = Load(rate=1.0)
    assert load.arrivals(9, 3) == load.arrivals(9, 3) != load.arrivals(9, 4)


@pytest.mark.parametrize("mask", [0, 5, 9])
def test_drawn_prompts_hold_every_token_but_the_mask(mask):
    prompts = [one.prompt for one in drawn(60, Lengths.parse("20"), Lengths.parse("1"), 10, 0, mask)]
    assert {token for prompt in prompts for token in prompt} == set(range(10)) - {mask}


def test_words_stand_for_tokens_where_the_vocabulary_is_not_known():
    assert all(len(one.prompt.split()) == 12 for one in drawn(9, Lengths.parse("12"), Lengths.parse("1"), None, 0))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"rate": 0.0}, "rate 0"),
        ({"rate": -1.0}, "rate -1"),
        ({"rate": math.inf}, "rate inf"),
        ({"rate": math.nan}, "rate nan"),
        ({"rate": 1.0, "burst": 0}, "bursts of 0"),
        ({"concurrency": 0}, "concurrency 0"),
        ({"concurrency": 2, "burst": 2}, "bursts with a rate only"),
        ({"rate": 1.0, "concurrency": 2}, "give one of them"),
        ({}, "give one of them"),
    ],
)
def test_loads_that_cannot_be_are_refused(given, words):
    with pytest.raises(InputError, match=words):
        Load(**given)


def write(path: Path, *lines: Any) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_a_file_s_requests_are_asked_in_order_and_again_from_the_first(tmp_path):
    turns = [{"role": "user", "content": "Hi"}]
    path = write(
        tmp_path / "a.jsonl", {"prompt": "a", "max_tokens": 3, "seed": 9}, {"prompt": [1, 2]}, {"messages": turns}
    )
    found = read_wanted(path, 5, Lengths.parse("7"), seed=2)
    assert found == [
        Wanted("a", 3, 9),
        Wanted([1, 2], 7, 3),
        Wanted(turns, 7, 4),
        Wanted("a", 3, 9),
        Wanted([1, 2], 7, 6),
    ]
    assert read_wanted(path, None, Lengths.parse("7"), 2) == found[:3]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ([1], "no object"),
        ({}, "either a prompt"),
        ({"prompt": ""}, "either a prompt"),
        ({"prompt": []}, "either a prompt"),
        ({"prompt": 3}, "either a prompt"),
        ({"prompt": "a", "messages": []}, "either a prompt"),
        ({"prompt": [1, "a"]}, "token ids"),
        ({"prompt": [True]}, "token ids"),
        ({"messages": ["a"]}, "role and content"),
        ({"messages": [{"role": "user"}]}, "role and content"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens is 0"),
        ({"prompt": "a", "max_tokens": 1.5}, "max_tokens is 1.5"),
        ({"prompt": "a", "max_tokens": None}, "max_tokens is None"),
        ({"prompt": "a", "seed": -1}, "seed is -1"),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path, line, words):
    path = write(tmp_path / "a.jsonl", {"prompt": "sound"}, line)
    with pytest.raises(InputError, match=f"line 2: .*{words}"):
        read_wanted(path, None, Lengths.parse("7"), 0)


def test_a_file_without_requests_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no request"):
        read_wanted(write(tmp_path / "a.jsonl", ""), 3, Lengths.parse("7"), 0)
    with pytest.raises(InputError, match="cannot read the requests"):
        read_wanted(tmp_path / "none.jsonl", 3, Lengths.parse("7"), 0)


# driving


class Slow:
    """A target that answers each request after a while, in threads."""

    def __init__(self, seconds: float = 0.01) -> None:
        self._seconds = seconds

    def send(self, wanted: Wanted, pending: Pending) -> None:
        threading.Thread(target=self._answer, args=(wanted, pending)).start()

    def _answer(self, wanted: Wanted, pending: Pending) -> None:
        time.sleep(self._seconds)
        pending.text()
        pending.end(tokens=wanted.max_tokens)


def some(count: int) -> list[Wanted]:
    return [Wanted("x", number + 1) for number in range(count)]


class Held:
    """A target that answers the oldest of what is under way a moment after that is as much as can be."""

    def __init__(self, concurrency: int, left: int) -> None:
        self._concurrency, self._left = concurrency, left
        self._held: list[Pending] = []
        self._lock = threading.Lock()
        self.most = 0

    def send(self, wanted: Wanted, pending: Pending) -> None:
        with self._lock:
            self._held.append(pending)
            self.most = max(self.most, len(self._held))
            self._answer_soon()

    def _answer_soon(self) -> None:
        if self._held and len(self._held) == min(self._concurrency, self._left):
            threading.Timer(0.01, self._answer).start()

    def _answer(self) -> None:
        with self._lock:
            self._left -= 1
            self._held.pop(0).end()
            self._answer_soon()


@pytest.mark.parametrize("concurrency", [1, 3, 12, 50])
def test_a_closed_loop_keeps_as_many_under_way_as_it_says(concurrency):
    target = Held(concurrency, left=12)
    found = drive(target, some(12), Load(concurrency=concurrency))  # would wait for ever with fewer
    assert target.most == min(12, concurrency)
    assert len(found) == 12


def test_an_open_loop_waits_for_nobody_and_counts_from_when_requests_should_have_come():
    target, load = Slow(0.2), Load(rate=100.0, burst=6)
    found = sorted(drive(target, some(12), load, seed=5), key=lambda one: one.tokens)
    assert [one.asked for one in found] == load.arrivals(12, 5)
    assert max(one.asked for one in found) < min(one.done for one in found)  # the second burst waited for no answer
    assert all(one.latency >= one.first_latency >= 0.19 for one in found)


def test_a_target_that_holds_the_sender_up_hides_no_waiting():
    class Holding(Slow):
        def send(self, wanted: Wanted, pending: Pending) -> None:
            time.sleep(0.05)
            pending.end()

    found = drive(Holding(), some(4), Load(rate=1000.0, burst=4))
    assert [one.asked for one in found] == [0.0] * 4
    assert all(one.latency >= 0.05 * number for number, one in enumerate(found, 1))


def test_the_first_text_is_the_first():
    ended: SimpleQueue[Answered] = SimpleQueue()
    times = iter([3.0, 5.0, 8.0])
    pending = Pending(1.0, lambda: next(times), ended)
    pending.text()
    pending.text()
    pending.end(tokens=2)
    found = ended.get()
    assert (found.first_latency, found.latency) == (2.0, 4.0)


def test_driving_tells_of_every_request_and_wants_one():
    told: list[int] = []
    drive(Slow(0.0), some(7), Load(concurrency=2), tell=lambda: told.append(1))
    assert len(told) == 7
    with pytest.raises(InputError, match="at least one"):
        drive(Slow(), [], Load(concurrency=2))


# what follows


def answered(asked: float, queued: float, busy: float, **more: Any) -> Answered:
    told = {"first": asked + queued, "tokens": 10, **more}
    return Answered(asked=asked, queued=queued, busy=busy, done=asked + queued + busy, **told)


RUN = ServeRun(
    "slots",
    Load(rate=1.0),
    2,
    (
        answered(0.0, 0.0, 4.0),
        answered(0.0, 0.0, 2.0),
        answered(1.0, 1.0, 4.0),
        answered(9.0, 0.0, 1.0, error="deadline"),
    ),
)


def test_percentiles_are_numpy_s_and_none_of_nothing():
    values = np.random.default_rng(0).exponential(size=500).tolist()
    found = percentiles(values)
    assert found is not None
    assert [found.p50, found.p95, found.p99] == pytest.approx(np.quantile(values, [0.5, 0.95, 0.99]).tolist())
    assert percentiles([]) is None


def test_rates_count_what_was_answered_over_the_whole_time():
    assert RUN.seconds == 10.0
    assert (RUN.requests_a_second, RUN.tokens_a_second) == (0.3, 3.0)
    assert RUN.errors == {"deadline": 1}
    assert [RUN.within(limit) for limit in (1.9, 2.0, 4.0, 5.0)] == [0, 1, 2, 3]
    assert RUN.goodput(4.0) == 0.2
    assert RUN.latency is not None
    assert RUN.latency.p50 == 4.0
    assert RUN.first is not None
    assert RUN.first.p50 == 0.0


def test_slots_are_busy_for_the_share_of_their_time_in_which_rows_run():
    """Row by row: 4 + 2 + 4 + 1 seconds of 2 x 10; while the third waits, from 1 to 2, both slots run."""
    assert RUN.slots_busy() == pytest.approx(11 / 20)
    assert RUN.slots_busy(backlog=True) == 1.0
    assert [(one.at, one.running, one.waiting) for one in RUN.moments() if 0.5 < one.at < 2.5][-1] == (2.0, 2, 0)


def test_two_clocks_make_no_slot_busier_than_it_can_be():
    run = ServeRun("slots", Load(rate=1.0), 1, (answered(0.0, 0.0, 1.01), answered(0.0, 1.0, 1.0)))
    assert run.slots_busy() == 1.0
    assert {one.running for one in run.moments()} == {0, 1}


def test_a_server_s_slots_are_as_busy_as_its_metrics_say():
    looks = (Looked(0.0, 1, 0), Looked(1.0, 2, 3), Looked(3.0, 0, 0))
    run = ServeRun("http://x", Load(rate=1.0), 2, (Answered(asked=0.0, done=3.0),), looks)
    assert run.slots_busy() == pytest.approx((1 * 1 + 2 * 2) / 3 / 2)
    assert run.slots_busy(backlog=True) == 1.0
    silent = ServeRun("http://x", Load(rate=1.0), None, (Answered(asked=0.0, done=3.0),))
    assert (silent.slots_busy(), silent.slots_busy(backlog=True)) == (None, None)


def test_a_report_goes_into_json_with_what_follows(tmp_path):
    static = ServeRun("static batches", Load(rate=1.0), 2, (answered(0.0, 0.0, 20.0),))
    report = ServeReport("tiny", {"requests": 4, "seed": 0}, 4.0, {}, None, (RUN, static))
    told = json.loads(json.dumps(report.to_dict()))
    assert told["format"] == "esdllm-bench-serve-1"
    assert told["runs"][0]["derived"]["goodput"] == 0.2
    assert told["runs"][0]["answered"][3]["error"] == "deadline"
    assert told["over_static_batches"] == [{"load": "rate 1", "tokens_per_second": 6.0}]
    pytest.importorskip("matplotlib")
    plot_serving(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_a_run_in_which_all_failed_has_no_times(tmp_path):
    run = ServeRun("http://x", Load(rate=1.0), None, (Answered(asked=0.0, done=1.0, error="429"),))
    derived = run.derived(10.0)
    assert (derived["latency"], derived["first_text"], derived["errors"]) == (None, None, {"429": 1})
    pytest.importorskip("matplotlib")
    plot_serving(ServeReport("tiny", {}, 4.0, {}, None, (run,)), tmp_path / "a.png")


# an engine


SHORT = ["gen_length=16", "block_length=8", "early_stop=false"]


@pytest.fixture(scope="module")
def engine(catalogue: Catalogue) -> Engine:
    return Engine.build(tiny_model("llada"), catalogue.configure("es-dllm", sets=SHORT), catalogue)


def tokens(engine: Engine, count: int, answers: str = "3:20") -> list[Wanted]:
    spec = engine.model.spec
    return drawn(count, Lengths.parse("3:9"), Lengths.parse(answers), spec.vocab, 0, spec.mask_id)


def alone(engine: Engine, catalogue: Catalogue, asked: Wanted) -> int:
    """Return how many tokens an answer has that is decoded by itself."""
    config = catalogue.configure("es-dllm", sets=["block_length=4", f"gen_length={asked.max_tokens}"])
    found = Engine.build(engine.model, config, catalogue).generate([asked.prompt], seed=asked.seed)
    return found.answer_tokens


def test_every_request_is_answered_in_slots_and_in_static_batches(engine, catalogue):
    asked, told = tokens(engine, 7), []
    loads = [Load(concurrency=5), Load(rate=200.0, burst=3)]
    runs = bench_engine(engine, loads, asked, slots=3, static=True, catalogue=catalogue, tell=lambda: told.append(1))
    assert [(run.target, run.load) for run in runs] == [
        (name, load) for load in loads for name in ("slots", "static batches")
    ]
    expected = sorted(one.max_tokens for one in asked)
    for run in runs:
        assert run.errors == {}
        assert all(one.asked <= one.first <= one.done for one in run.answered)
        assert 0 < run.slots_busy() <= 1
        assert (run.rows_a_step is None) == (run.target != "slots")
        assert run.rows_a_step is None or 1 <= run.rows_a_step <= 3
        assert sorted(one.tokens for one in run.answered) == expected
    assert len(told) == 28


def test_tokens_are_those_before_the_end_where_answers_may_stop_early(small, catalogue):
    model = load_model(str(small["tiny-llada"]), "cpu", catalogue=catalogue)
    engine = Engine.build(model, catalogue.configure("es-dllm", sets=["block_length=4"]), catalogue)
    asked = [
        Wanted("Who are you?", 12, 1),
        Wanted("Sort 3 1 2.", 8, 2),
        Wanted([{"role": "user", "content": "Hi"}], 4, 3),
    ]
    (run,) = bench_engine(engine, [Load(concurrency=3)], asked, slots=2, catalogue=catalogue)
    expected = [alone(engine, catalogue, one) for one in asked]
    assert run.errors == {}
    assert sorted(one.tokens for one in run.answered) == sorted(expected)


class _Recorded(StaticBatches):
    """Static batches that note what is decoded together, each a batch as it is let."""

    def __init__(self, engine: Engine, size: int, catalogue: Catalogue) -> None:
        self.batches: list[tuple[int, int]] = []
        self.let = threading.Semaphore(0)
        super().__init__(engine, size, catalogue)

    @contextmanager
    def _decoding(self, gen_length: int) -> Iterator[Engine]:
        with super()._decoding(gen_length) as engine:

            def generate(prompts: Any, seed: Any) -> Any:
                self.batches.append((len(prompts), gen_length))
                self.let.acquire()
                return engine.generate(prompts, seed=seed)

            yield SimpleNamespace(generate=generate)


def test_static_batches_take_what_has_come_and_last_as_long_as_their_longest(engine, catalogue):
    target = _Recorded(engine, 3, catalogue)
    ended: SimpleQueue[Answered] = SimpleQueue()
    lengths = (2, 4, 16, 8, 6, 3)

    def send(length: int) -> None:
        target.send(Wanted([1, 2, 3], length), Pending(time.perf_counter(), time.perf_counter, ended))

    send(lengths[0])
    while not target.batches:  # the first is decoded alone, for nobody else has come
        time.sleep(0.001)
    for length in lengths[1:]:
        send(length)
    for _ in range(3):
        target.let.release()
    found = [ended.get() for _ in lengths]
    target.close()
    assert target.batches == [(1, 2), (3, 16), (2, 6)]
    assert all(one.first is not None and one.error is None for one in found)
    whole_batch = found[2].busy
    assert [one.busy / whole_batch for one in found[1:4]] == pytest.approx([4 / 16, 1, 8 / 16])
    assert found[4].queued > found[1].queued > 0


@pytest.mark.parametrize(("early_stop", "tokens"), [(False, [9, 40]), (True, [2, 2])])
def test_static_answers_count_as_those_in_slots(early_stop, tokens):
    """As if both answers had ended after two tokens, one of which was to have 9."""

    class Scripted(StaticBatches):
        @contextmanager
        def _decoding(self, gen_length: int) -> Iterator[Any]:
            yield SimpleNamespace(generate=lambda prompts, seed: SimpleNamespace(answers=[[5, 6]] * len(prompts)))

    target = Scripted(SimpleNamespace(config=SimpleNamespace(early_stop=early_stop)), 1, None)
    found = drive(target, [Wanted([1], 9), Wanted([1], 40)], Load(concurrency=1))
    target.close()
    assert [one.tokens for one in found] == tokens


def test_static_batches_that_are_closed_decode_no_more_than_the_batch_that_has_begun(engine, catalogue):
    target, ended = _Recorded(engine, 2, catalogue), SimpleQueue()
    for number in range(9):
        target.send(Wanted([1, 2, 3], 4), Pending(0.0, time.perf_counter, ended))
        while number == 0 and not target.batches:
            time.sleep(0.001)
    threading.Timer(0.2, target.let.release, [9]).start()  # the first batch ends after the others were given up
    target.close()
    assert target.batches == [(1, 4)]


def test_a_batch_that_fails_is_an_error_of_each_of_its_rows(engine, catalogue):
    with static_batches(engine, 4, catalogue) as target:
        found = drive(target, [Wanted([engine.model.spec.mask_id], 4)] * 3, Load(rate=1e6, burst=3))
    assert [one.error for one in found] == ["InputError"] * 3


@pytest.mark.parametrize(("whole", "tokens"), [(True, 40), (False, 2)])
def test_a_whole_answer_s_length_counts_and_of_others_what_comes_before_the_end(whole, tokens):
    """As if an answer had ended after two of its 40 tokens."""
    completion = Completion(FinishReason.STOP, "a b", (5, 6), (), 3, 40, 0.5, 1.5)

    class Scripted:
        def submit(self, request: Request, listener: Callable[[Update], None]) -> None:
            assert (request.settings, request.stream, request.seed) == ({"gen_length": 40}, True, 7)
            listener(Update("a", tokens=(5,)))
            listener(Update(" b", tokens=(6,), completion=completion))

    (found,) = drive(SessionTarget(Scripted(), whole), [Wanted([1, 2, 3], 40, 7)], Load(concurrency=1))
    assert (found.tokens, found.queued, found.busy, found.error) == (tokens, 0.5, 1.5, None)
    assert found.first is not None


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.DEADLINE, FinishReason.ERROR])
def test_an_answer_that_was_cut_off_is_an_error(reason):
    class Scripted:
        def submit(self, request: Request, listener: Callable[[Update], None]) -> None:
            listener(Update("", completion=Completion(reason, "", (), (), 3, 40, 0.5, 1.5)))

    (found,) = drive(SessionTarget(Scripted()), [Wanted([1, 2, 3], 40)], Load(concurrency=1))
    assert (found.error, found.first) == (reason.value, None)


def test_a_prompt_that_cannot_be_decoded_is_refused_before_anything_is_measured(engine, catalogue):
    mask = engine.model.spec.mask_id
    told: list[int] = []
    for wrong in ([mask], [10**6], [-1], "text without a tokenizer"):
        with pytest.raises(InputError):
            bench_engine(
                engine,
                [Load(concurrency=2)],
                [*tokens(engine, 2), Wanted(wrong, 4)],
                slots=2,
                catalogue=catalogue,
                tell=lambda: told.append(1),
            )
    assert told == []


def test_a_full_queue_is_an_error_of_its_own_kind(engine, catalogue):
    (run,) = bench_engine(
        engine, [Load(rate=1e6, burst=30)], tokens(engine, 30, "40"), slots=1, max_queue=2, catalogue=catalogue
    )
    assert set(run.errors) == {"queue full"}
    assert len(run.sound) >= 1
    assert len(run.sound) + run.errors["queue full"] == 30


def test_a_closed_session_and_one_that_fails_are_errors(engine):
    session = Session.open(engine, slots=1, length=64)
    session.close()
    found = drive(SessionTarget(session), some(2), Load(concurrency=1))
    assert {one.error for one in found} <= {"ClosedError", "InputError"}


# a server


class Fake(ThreadingHTTPServer):
    """Speaks OpenAI's API as far as is asked of it."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: Callable[[int], Any] = lambda number: whole(3)
        self.models: Any = {"data": [{"id": "tiny"}, {"id": "other"}]}
        self.metrics = ""
        self.answered_at_looks: list[int] = []
        self.answered = 0
        self.key = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def whole(count: int) -> list[Any]:
    return [
        {"choices": [{"text": "", "finish_reason": None}]},
        *({"choices": [{"text": " a", "finish_reason": None}]} for _ in range(count)),
        {"choices": [{"text": "", "finish_reason": "length"}]},
        {"choices": [], "usage": {"completion_tokens": count, "prompt_tokens": 1}},
    ]


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def log_message(self, *_: Any) -> None:
        pass

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self._say(401, b"{}")
        elif self.path == "/metrics":
            self.server.answered_at_looks.append(self.server.answered)
            self._say(200 if self.server.metrics else 404, self.server.metrics.encode())
        else:
            said = self.server.models
            self._say(200, said if isinstance(said, bytes) else json.dumps(said).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, body))
        answer = self.server.answers(len(self.server.asked))
        if isinstance(answer, int):
            self._say(answer, b'{"error": {"message": "no"}}')
            return
        self.send_response(200)
        self.end_headers()
        for event in answer:
            self.wfile.write(event if isinstance(event, bytes) else f"data: {json.dumps(event)}\n\n".encode())
        self.server.answered += 1
        self.wfile.write(b"data: [DONE]\n\n")


@pytest.fixture
def server() -> Iterator[Fake]:
    with Fake() as found:
        threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
        yield found
        found.shutdown()


def test_a_server_is_asked_by_openai_s_api_and_heard_to_the_end(server):
    target = ServerTarget.at(server.url)
    turns = [{"role": "user", "content": "Hi"}]
    (run,) = bench_server(
        target, [Load(concurrency=2)], [Wanted("a b", 5, 1), Wanted([1, 2], 6, 2), Wanted(turns, 7, 3)]
    )
    assert (target.model, run.errors, len(run.sound)) == ("tiny", {}, 3)
    assert [one.tokens for one in run.answered] == [3, 3, 3]
    assert all(one.asked < one.first <= one.done for one in run.answered)
    same = {"model": "tiny", "stream": True, "stream_options": {"include_usage": True}}
    asked = sorted(server.asked[1:], key=lambda one: one[1]["seed"])  # without the one that warms up
    assert asked == [
        ("/v1/completions", {**same, "prompt": "a b", "max_tokens": 5, "seed": 1}),
        ("/v1/completions", {**same, "prompt": [1, 2], "max_tokens": 6, "seed": 2}),
        ("/v1/chat/completions", {**same, "messages": turns, "max_tokens": 7, "seed": 3}),
    ]
    assert run.slots_busy() is None


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        *((status, str(status)) for status in (400, 401, 404, 413, 422, 429, 500, 503)),
        ([], "broken off"),
        (whole(2)[:2], "broken off"),
        ([*whole(2)[:2], {"error": {"message": "NaN"}}], "broken off"),
        ([b"data: {broken\n\n"], "not understood"),
        ([b"data: []\n\n"], "not understood"),
        ([b'data: {"choices": 3}\n\n'], "not understood"),
    ],
)
def test_what_goes_wrong_is_told_by_its_kind(server, answer, kind):
    server.answers = lambda number: answer
    (run,) = bench_server(ServerTarget.at(server.url), [Load(concurrency=2)], some(3))
    assert run.errors == {kind: 3}


def test_a_server_that_goes_away_is_an_error_of_each_request(server):
    target = ServerTarget.at(server.url)
    server.shutdown()
    server.server_close()
    (run,) = bench_server(target, [Load(rate=1e4)], some(4))
    assert run.errors == {"connection": 4}


def test_slots_are_read_off_a_server_s_metrics(server):
    server.metrics = (
        '# HELP esdllm:slots x\nesdllm:slots{model_name="a"} 4.0\n'
        'esdllm:num_requests_running{model_name="a"} 3.0\nesdllm:num_requests_waiting{model_name="a"} 1e0\n'
    )
    server.answers = lambda number: time.sleep(0.12) or whole(1)
    (run,) = bench_server(ServerTarget.at(server.url), [Load(concurrency=1)], some(4))
    assert run.slots == 4
    assert run.slots_busy() == run.slots_busy(backlog=True) == 0.75
    assert min(server.answered_at_looks) >= 1  # what warms up is not looked at


@pytest.mark.parametrize("models", [b"<html>", {}, {"data": 3}, [], {"data": [{}]}, b"null"])
def test_what_is_no_server_of_this_kind_is_told(server, models):
    server.models = models
    with pytest.raises(UnavailableError, match="no server answers at http"):
        ServerTarget.at(server.url)


def test_a_server_s_model_is_chosen_by_name_and_its_key_brought(server):
    assert ServerTarget.at(f"{server.url}/v1/", "other").model == "other"
    with pytest.raises(InputError, match="has the models tiny, other"):
        ServerTarget.at(server.url, "third")
    server.key = "sesame"
    with pytest.raises(UnavailableError, match="401 Unauthorized; its key is taken from ESDLLM_API_KEY"):
        ServerTarget.at(server.url)
    found = ServerTarget.at(server.url, key="sesame")
    assert "sesame" not in repr(found)
    with pytest.raises(InputError, match=r"such as http://127\.0\.0\.1:8000"):
        ServerTarget.at("127.0.0.1:8000")


# the command


QUICK = ["bench", "serve", "--geometry", "tiny,layers=1,hidden=64,vocab=256", "--requests", "5", "--slots", "2"]
LENGTHS = ["--prompt-tokens", "3:6", "--answer-tokens", "4:12", "--block-length", "4", "--threads", "1"]


def test_the_command_prints_tables_and_what_slots_gain(run: Run):
    code, out, err = run(*QUICK, *LENGTHS, "--static", "--rate", "500", "--concurrency", "4", "--within", "60")
    assert code == 0, err
    assert "5 requests per run, prompts 3:6, answers 4:12 tokens, seed 0; 2 slots" in out
    for name in ("rate 500, slots", "rate 500, static batches", "concurrency 4, slots"):
        assert out.count(name) == 2
    assert "the tokens per second of static batches" in out
    assert "first text" in out


def test_the_command_writes_json(run: Run):
    code, out, err = run(*QUICK, *LENGTHS, "--json")
    assert code == 0, err
    told = json.loads(out)
    (only,) = told["runs"]
    assert only["load"]["concurrency"] == 4
    assert len(only["answered"]) == only["derived"]["requests"] == 5
    assert told["config"]["early_stop"] is False
    assert told["environment"]["slots"] == 2


def test_the_command_measures_a_server_by_a_file(run: Run, server: Fake, tmp_path: Path):
    path = write(tmp_path / "asked.jsonl", {"prompt": "a", "max_tokens": 3}, {"prompt": "b"})
    code, out, err = run(
        "bench", "serve", "--url", server.url, "--input", str(path), "--rate", "1000", "--requests", "6"
    )
    assert code == 0, err
    assert server.url in out
    assert sorted(body["prompt"] for _, body in server.asked[1:]) == ["a"] * 3 + ["b"] * 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--burst", "4"], "--burst 4 without --rate"),
        (["--within", "0"], "--within 0; give seconds"),
        (["--within", "nan"], "--within nan; give seconds"),
        (["--rate", "0"], "rate 0; give requests per second"),
        (["--rate", "1", "--rate", "1.0"], "given twice"),
        (["--concurrency", "2", "--concurrency", "2"], "given twice"),
        (["--answer-tokens", "9:4"], "lengths '9:4'"),
        (["--prompt-tokens", "0"], "lengths '0'"),
        (["--input", "none.jsonl"], "cannot read the requests none.jsonl"),
        (["--answer-tokens", "5000"], "context"),
        (["--input", "none.jsonl", "--prompt-tokens", "4"], "--prompt-tokens 4 with --input"),
        (["--plot", "a.gif"], "let it end in"),
    ],
)
def test_what_cannot_be_measured_is_refused(run: Run, words: list[str], said: str):
    code, out, err = run(*QUICK, *words)
    assert code == 2
    assert said in err
    assert out == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--static"], "--static with"),
        (["--slots", "3"], "--slots with"),
        (["--max-queue", "0", "--preset", "vanilla"], "--max-queue and --preset with"),
        (["--geometry", "tiny"], "--geometry with"),
        (["-s", "gen_length=4"], "--set with"),
        (["--block-length", "4"], "--block-length with"),
        (["--dtype", "float32"], "--dtype with"),
        (["--threads", "1"], "--threads with"),
    ],
)
def test_what_a_server_at_an_address_decides_itself_is_not_asked_for(run: Run, words: list[str], said: str):
    code, _, err = run("bench", "serve", "--url", "http://127.0.0.1:9", *words)
    assert code == 2
    assert f"{said} --url: that is of a model in this process" in err


def test_a_server_that_is_not_there_is_told(run: Run):
    code, _, err = run("bench", "serve", "--url", "http://127.0.0.1:9")
    assert code == 2
    assert "no server answers at http://127.0.0.1:9/v1/models: " in err


def test_latencies_stand_in_the_order_of_their_heads_and_what_is_not_known_is_blank():
    table = latency_table("first text", [(Text("a"), Percentiles(1.5, 2.5, 3.5), None)])
    assert [str(column.header) for column in table.columns[1:]] == [
        f"{what}\np{part}" for what in ("latency", "first text") for part in (50, 95, 99)
    ]
    assert [[*column.cells] for column in table.columns[1:]] == [["1.5"], ["2.5"], ["3.5"], [""], [""], [""]]
