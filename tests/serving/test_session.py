"""A session: answers equal to those alone, told once and for all, whoever comes, goes, fails or is cancelled beside them."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from random import Random
from threading import Event
from typing import Any

import pytest
import torch
from runs import Build, prompts

from esdllm import Catalogue, DecodeConfig, Engine, EsdllmError, Generation, NumericsError, PluginError, load_model
from esdllm.config import merge
from esdllm.errors import ClosedError, ConfigError, ContextError, InputError, QueueFullError
from esdllm.serving.requests import Completion, FinishReason, Request, Update
from esdllm.serving.scheduler import OldestFirst
from esdllm.serving.session import Session, Ticket
from esdllm_models.decoder import Transformer

PROMPTS = [
    "What is 2 + 3?",
    "Sort 5 2 9.",
    "Who are you?",
    "Reverse: abc def",
    "Hello",
    "Count to ten, please, and then back.",
]


@pytest.fixture(scope="module")
def engine(small: dict[str, Path], catalogue: Catalogue) -> Engine:
    """Two random layers with a tokenizer; it skips, and refreshes twice per block."""
    settings: dict[str, Any] = {
        "gen_length": 12,
        "block_length": 8,
        "refresh": {"prompt_refresh": 8, "block_refresh": 4},
    }
    config = catalogue.configure("es-dllm", settings=settings)
    return Engine.build(load_model(small["tiny-llada"], "cpu", "float32", catalogue), config, catalogue)


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """Three slots of 96 columns."""
    with Session.open(engine, slots=3, length=96, max_queue=200) as found:
        yield found


class Told:
    """A listener: all updates, and a wait for the last."""

    def __init__(self) -> None:
        self.updates: list[Update] = []
        self._ended = Event()

    def __call__(self, update: Update) -> None:
        self.updates.append(update)
        if update.completion is not None:
            self._ended.set()

    @property
    def completion(self) -> Completion:
        """How it ended."""
        assert self._ended.wait(60)
        assert self.updates[-1].completion is not None
        return self.updates[-1].completion

    @property
    def joined(self) -> tuple[str, tuple[int, ...], tuple[float, ...]]:
        """All that was new."""
        updates = self.updates
        return (
            "".join(each.new for each in updates),
            tuple(token for each in updates for token in each.tokens),
            tuple(one for each in updates for one in each.logprobs),
        )


def ask(session: Session, **request: Any) -> tuple[Ticket, Told]:
    """Submit a request."""
    told = Told()
    return session.submit(Request(**request), told), told


def alone(engine: Engine, prompt: str, seed: int | None = None, **settings: Any) -> Generation:
    """Return what `generate` makes of a prompt."""
    config = DecodeConfig.from_dict(merge(engine.config.to_dict(), settings))
    return Engine.build(engine.model, config).generate(prompt, seed=seed)


# ------------------------------------------------------------------------------------------------------------- the answers


def test_answers_are_those_alone_and_what_is_new_joined_is_the_answer(engine: Engine, session: Session) -> None:
    random, asked = Random(0), []
    for number in range(16):
        settings: dict[str, Any] = random.choice([{}, {"gen_length": random.randint(1, 20)}])
        if random.random() < 0.3:
            settings = {**settings, "sampler": {"name": "gumbel", "temperature": 0.8}}
        how = {"stream": number % 2 == 0, "logprobs": number % 3 == 0, "drafts": number % 4 == 0}
        prompt, seed = random.choice(PROMPTS), random.randrange(4)
        asked.append((prompt, seed, settings, ask(session, prompt=prompt, seed=seed, settings=settings, **how)[1]))
    for prompt, seed, settings, told in asked:
        expected, completion = alone(engine, prompt, seed, **settings), told.completion
        assert expected.text == [completion.text]
        assert expected.answers == [list(completion.tokens)]
        assert completion.steps == expected.steps
        assert told.joined == (completion.text, completion.tokens, completion.logprobs)
        ended = len(completion.tokens) < settings.get("gen_length", 12)
        assert completion.finish_reason is (FinishReason.STOP if ended else FinishReason.LENGTH)


def test_logprobs_are_the_logarithms_of_the_confidence_of_each_commit(engine: Engine, session: Session) -> None:
    class Sure:
        def __init__(self) -> None:
            self.found: dict[int, float] = {}

        def start(self, tokens: torch.Tensor, spec: Any) -> None:
            self.first = int((tokens[0] == spec.mask_id).long().argmax())

        def step(self, record: Any) -> None:
            for column in record.committed[0].nonzero()[:, 0].tolist():
                self.found[column - self.first] = record.guess_confidence[0, column].item()

        def end(self) -> None: ...

    sure = Sure()
    engine.generate(PROMPTS[0], observers=[sure])
    _, told = ask(session, prompt=PROMPTS[0], logprobs=True)
    expected = [sure.found[i] for i in range(len(told.completion.tokens))]
    assert torch.tensor(told.completion.logprobs).exp().tolist() == pytest.approx(expected, rel=1e-5)
    assert len(expected) == 12


def test_drafts_show_the_canvas_after_each_step_and_others_do_not(engine: Engine, session: Session) -> None:
    _, told = ask(session, prompt=PROMPTS[0], drafts=True)
    _, plain = ask(session, prompt=PROMPTS[0], stream=True)
    steps = told.completion.steps
    frames = [update.frame for update in told.updates[:-1]]
    assert [frame.forwards for frame in frames if frame] == list(range(1, steps + 1))
    assert plain.completion.text == told.completion.text
    assert all(update.frame is None and not update.draft for update in plain.updates)


def test_blanks_are_filled_as_alone(engine: Engine, session: Session) -> None:
    mask = engine.model.spec.mask_id
    canvas = [5, mask, mask, 9, 12, mask, 7]
    _, told = ask(session, prompt=canvas, infill=True, stream=True)
    expected = engine.generate([canvas], infill=True)
    assert [list(told.completion.tokens)] == expected.answers
    assert told.joined[0] == told.completion.text
    assert told.completion.prompt_tokens == 4


def test_a_session_that_is_asked_nothing_for_a_while_goes_on(engine: Engine, session: Session) -> None:
    assert ask(session, prompt="Hello")[1].completion.text == alone(engine, "Hello").text[0]  # type: ignore[index]
    time.sleep(0.05)
    assert ask(session, prompt="Hello")[1].completion.text == alone(engine, "Hello").text[0]  # type: ignore[index]
    state = session.state()
    assert (state.running, state.waiting, state.finished[FinishReason.LENGTH]) == (0, 0, 2)
    assert state.generation_tokens == 24
    assert 0 < state.busy < 1


# ------------------------------------------------------------------------------------------------------------ stop strings


def test_an_answer_ends_before_a_stop_string_wherever_it_is_split(engine: Engine, session: Session) -> None:
    whole = alone(engine, "Hello").text[0]  # type: ignore[index]
    stops = {whole[start : start + length] for start in range(len(whole)) for length in (1, 2, 5)}
    assert len(stops) > 15
    asked = {stop: ask(session, prompt="Hello", stop=(stop, "never there"), stream=True)[1] for stop in sorted(stops)}
    for stop, told in asked.items():
        assert told.completion.text == whole[: whole.find(stop)]
        assert told.joined[:2] == (told.completion.text, told.completion.tokens)
        assert told.completion.finish_reason is FinishReason.STOP


def test_an_answer_that_has_reached_a_stop_string_is_decoded_no_further(engine: Engine, session: Session) -> None:
    settings = {"gen_length": 64}
    whole = alone(engine, "Hello", **settings)
    assert whole.text is not None
    _, told = ask(session, prompt="Hello", settings=settings, stop=(whole.text[0][:1],))
    assert told.completion.text == ""
    assert told.completion.steps < whole.steps / 2


# ----------------------------------------------------------------------------------------------------- ends before the end


def test_a_cancelled_request_ends_with_what_is_settled_and_frees_its_slot(engine: Engine, session: Session) -> None:
    long = {"gen_length": 70, "block_length": 2}
    rows = [ask(session, prompt="Hello", settings=long, stream=True) for _ in range(5)]
    while not rows[0][1].updates:
        time.sleep(0.001)
    for ticket, _ in rows:
        ticket.cancel()
        ticket.cancel()
    for _, told in rows:
        assert told.completion.finish_reason is FinishReason.CANCELLED
        assert told.joined[0] == told.completion.text
    whole = alone(engine, "Hello", **long).text
    assert whole is not None
    assert all(whole[0].startswith(told.completion.text) for _, told in rows)
    assert rows[0][1].completion.text
    assert (rows[4][1].completion.text, rows[4][1].completion.steps) == ("", 0)  # it waited
    assert session.state().running == session.state().waiting == 0


def test_a_request_whose_time_is_over_ends_with_what_is_settled(session: Session) -> None:
    long = {"gen_length": 70}
    _, running = ask(session, prompt="Hello", settings=long, timeout=0.05)
    blocking = [ask(session, prompt="Hello", settings=long) for _ in range(3)]
    _, waiting = ask(session, prompt="Hello", settings=long, timeout=0.001)
    for told in (running, waiting):
        assert told.completion.finish_reason is FinishReason.DEADLINE
        assert len(told.updates) == 1
    assert waiting.completion.decoding == 0
    for ticket, _ in blocking:
        ticket.cancel()


def test_requests_beyond_the_queue_are_refused_and_told_when_to_come_again(engine: Engine) -> None:
    with Session.open(engine, slots=1, length=96, max_queue=2) as session:
        taken = []
        with pytest.raises(QueueFullError, match="no more than 2 may") as refused:
            taken += [ask(session, prompt="Hello")[1] for _ in range(40)]
        assert refused.value.retry_after > 0


def test_draining_ends_what_was_taken_and_takes_no_more(engine: Engine) -> None:
    session = Session.open(engine, slots=2, length=96)
    told = [ask(session, prompt="Hello")[1] for _ in range(5)]
    session.drain()
    with pytest.raises(ClosedError, match="takes no more requests"):
        ask(session, prompt="Hello")
    assert session.state().draining
    assert {each.completion.finish_reason for each in told} == {FinishReason.LENGTH}
    assert session.join(30)


def test_closing_ends_what_is_not_complete_with_an_error(engine: Engine) -> None:
    session = Session.open(engine, slots=1, length=96)
    told = [ask(session, prompt="Hello", settings={"gen_length": 70})[1] for _ in range(3)]
    assert session.close(30)
    assert {each.completion.finish_reason for each in told} == {FinishReason.ERROR}
    assert all(isinstance(each.completion.error, ClosedError) for each in told)
    assert session.close(1)


def test_a_closed_session_holds_no_memory(engine: Engine) -> None:
    session = Session.open(engine, slots=1, length=96)
    held = weakref.ref(session._worker._slots)
    session.close()
    del session
    gc.collect()
    assert held() is None


# -------------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"prompt": ""}, InputError, "empty"),
        ({"prompt": "a " * 200}, ContextError, "columns, and a slot has 96"),
        ({"prompt": "a", "settings": {"gen_length": 95}}, ContextError, "columns, and a slot has 96"),
        ({"prompt": "a", "settings": {"gen_lenght": 5}}, ConfigError, "did you mean 'gen_length'"),
        ({"prompt": "a", "settings": {"cache": "int8"}}, ConfigError, "requests cannot differ in cache"),
        ({"prompt": "a", "settings": {"sampler": {"temperature": -1}}}, ConfigError, "temperature"),
        ({"prompt": "a", "settings": {"block_length": 64}}, ConfigError, "slots are made for"),
        ({"prompt": "a", "stop": ("",)}, InputError, "give texts that are not empty"),
        ({"prompt": "a", "timeout": 0}, InputError, "timeout = 0"),
        ({"prompt": "a", "timeout": "1"}, InputError, "timeout = '1'"),
        ({"prompt": [1, 2], "infill": True}, InputError, "there is nothing to fill in"),
        ({"prompt": [1, 10**9]}, InputError, "outside the vocabulary"),
        ({"prompt": "\ud800"}, InputError, "not valid UTF-8"),
        ({"prompt": "a", "seed": -1}, InputError, "seed = -1"),
    ],
)
def test_what_cannot_be_decoded_is_refused_at_once(
    session: Session, request_: dict[str, Any], error: type[EsdllmError], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(session, **request_)
    assert session.state().waiting == session.state().running == 0


# ---------------------------------------------------------------------------------------------------------- what goes wrong


def test_nan_in_one_row_fails_that_request_alone(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build("llada-0", "es-dllm", gen_length=8, block_length=8)
    good, bad = prompts(2, 6).tolist()
    marked, embed = bad[0], Transformer.embed

    def poisoned(self: Transformer, tokens: torch.Tensor) -> torch.Tensor:
        return embed(self, tokens).masked_fill((tokens == marked).any(1, keepdim=True).unsqueeze(-1), float("nan"))

    expected = engine.generate([good])
    monkeypatch.setattr(Transformer, "embed", poisoned)
    with Session.open(engine, slots=4, length=40) as session:
        told = [ask(session, prompt=prompt)[1] for prompt in (good, bad, good)]
        assert isinstance(told[1].completion.error, NumericsError)
        assert [list(told[i].completion.tokens) for i in (0, 2)] == expected.answers * 2


def test_a_step_that_fails_fails_one_request_and_the_others_are_as_alone(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = build("llada-0", "es-dllm", gen_length=8, block_length=8)
    good, bad, other = prompts(3, 6).tolist()
    marked, embed, calls = bad[0], Transformer.embed, [0]
    assert marked not in good
    assert marked not in other
    expected = [engine.generate([prompt]).answers[0] for prompt in (good, other)]

    def failing(self: Transformer, tokens: torch.Tensor) -> torch.Tensor:
        calls[0] += int((tokens == self.spec.mask_id).any())
        if calls[0] > 2 and len(tokens) > 1:
            raise ZeroDivisionError("of three rows")
        if (tokens == marked).any() and calls[0] > 4:
            raise ZeroDivisionError("of its own")
        return embed(self, tokens)

    monkeypatch.setattr(Transformer, "embed", failing)
    with Session.open(engine, slots=4, length=40) as session:
        told = [ask(session, prompt=prompt, stream=True)[1] for prompt in (good, bad, other)]
        assert isinstance(told[1].completion.error, PluginError)
        assert "of its own" in str(told[1].completion.error)
        assert [list(told[i].completion.tokens) for i in (0, 2)] == expected
        assert all(told[i].joined[1] == told[i].completion.tokens for i in (0, 2))
        assert session.state().finished == {FinishReason.LENGTH: 2, FinishReason.ERROR: 1}


def test_a_listener_that_fails_loses_its_request_and_no_other(engine: Engine, session: Session) -> None:
    def failing(update: Update) -> None:
        raise ZeroDivisionError

    session.submit(Request(prompt="Hello", stream=True), failing)
    _, told = ask(session, prompt="Hello")
    assert [told.completion.text] == alone(engine, "Hello").text
    assert session.state().finished[FinishReason.CANCELLED] == 1


def test_a_fault_of_the_session_itself_ends_all_requests_and_says_so(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(OldestFirst):
        def choose(self, rows: Any) -> Any:
            raise ZeroDivisionError("no policy of ours")

    session = Session.open(engine, slots=2, length=96, policy=Failing())
    _, told = ask(session, prompt="Hello")
    assert "a fault of its own, ZeroDivisionError: no policy of ours" in str(told.completion.error)
    assert session.join(10)
    assert "its thread failed" in caplog.text
    with pytest.raises(ClosedError):
        ask(session, prompt="Hello")


def test_a_listener_may_ask_the_session_for_more(engine: Engine, session: Session) -> None:
    inner = Told()

    def asking(update: Update) -> None:
        if update.completion is not None:
            session.submit(Request(prompt="Hello"), inner)

    session.submit(Request(prompt="Hello"), asking)
    assert [inner.completion.text] == alone(engine, "Hello").text


# ------------------------------------------------------------------------------------------------------------- under traffic


@pytest.mark.parametrize("count", [pytest.param(60, id="few"), pytest.param(3000, id="many", marks=pytest.mark.full)])
def test_under_any_traffic_no_slot_leaks_and_every_answer_is_that_alone(engine: Engine, count: int) -> None:
    random, asked, waiting = Random(count), [], Queue[Told]()
    known: dict[Any, Generation] = {}
    with Session.open(engine, slots=4, length=96, max_queue=count) as session:
        for _ in range(count):
            prompt, length = random.choice(PROMPTS), random.randint(1, 24)
            ticket, told = ask(
                session,
                prompt=prompt,
                settings={"gen_length": length},
                stream=random.random() < 0.5,
                timeout=random.choice([None, None, None, 0.01, 0.3]),
            )
            asked.append((prompt, length, told))
            waiting.put(told)
            if random.random() < 0.2:
                ticket.cancel()
            if random.random() < 0.3:
                time.sleep(random.random() * 0.01)
        for prompt, length, told in asked:
            completion = told.completion
            if (prompt, length) not in known:
                known[prompt, length] = alone(engine, prompt, gen_length=length)
            text = known[prompt, length].text
            assert text is not None
            assert told.joined[:2] == (completion.text, completion.tokens)
            if completion.finish_reason in (FinishReason.STOP, FinishReason.LENGTH):
                assert completion.text == text[0]
            else:
                assert completion.finish_reason in (FinishReason.CANCELLED, FinishReason.DEADLINE)
                assert text[0].startswith(completion.text)
        state = session.state()
        assert (state.running, state.waiting, sum(state.finished.values())) == (0, 0, count)
        assert session._worker._slots.free == 4
