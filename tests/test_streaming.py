"""The stream's laws: settled text only grows and is the answer's; nobody waits in vain; closing frees the thread."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import pytest
import torch
from runs import Watch

from esdllm import Catalogue, InputError, Model, Pipeline, load_model

ASKED = "Sort these numbers: 31, 4, 15."
SETTINGS: dict[str, Any] = {"gen_length": 32, "block_length": 16}


@pytest.fixture(scope="module")
def tiny(catalogue: Catalogue) -> dict[str, Model]:
    return {name: load_model(name, "cpu", catalogue=catalogue) for name in ("tiny-llada", "tiny-dream")}


@pytest.fixture
def pipe(tiny: dict[str, Model], catalogue: Catalogue) -> Pipeline:
    return make(tiny["tiny-llada"], catalogue)


def make(model: Model, catalogue: Catalogue, preset: str = "es-dllm", **over: Any) -> Pipeline:
    return Pipeline.of(model, catalogue.configure(preset, settings={**SETTINGS, **over}), catalogue)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "esdllm stream"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-llada", "tiny-dream"])
@pytest.mark.parametrize("preset", ["es-dllm", "es-dllm-parallel", "vanilla"])
def test_settled_text_only_grows_and_ends_as_the_answer(
    tiny: dict[str, Model], catalogue: Catalogue, name: str, preset: str
) -> None:
    pipe = make(tiny[name], catalogue, preset)
    expected = pipe(ASKED)
    stream = pipe.stream(ASKED)
    events = list(stream)
    text = ""
    for event in events:
        assert event.text == text + event.new
        text = event.text
    assert text == expected.text == stream.answer.text
    assert events[-1].settled == expected.tokens == stream.answer.tokens
    assert [event.final for event in events] == [False] * (len(events) - 1) + [True]
    assert stream.answer.forwards == expected.forwards == len(events) - 1
    assert stream.answer.complete


def test_settled_tokens_are_decided_and_have_no_mask_before_them(pipe: Pipeline) -> None:
    for event in pipe.stream(ASKED):
        assert event.frame.tokens[: len(event.settled)] == event.settled
        assert pipe.model.spec.mask_id not in event.settled


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-llada", "tiny-dream"])
def test_frames_are_the_run_s(tiny: dict[str, Model], catalogue: Catalogue, name: str) -> None:
    pipe, watch = make(tiny[name], catalogue), Watch()
    pipe.engine.generate(ASKED, chat=True, observers=[watch])
    first = int((watch.tokens[0][0] == pipe.model.spec.mask_id).long().argmax())
    events = list(pipe.stream(ASKED))[:-1]
    for event, tokens, committed in zip(events, watch.tokens[1:], watch.committed, strict=True):
        assert list(event.frame.tokens) == tokens[0, first:].tolist()
        assert list(event.positions) == committed[0, first:].nonzero()[:, 0].tolist()
        assert set(event.positions) <= set(event.frame.block)


@pytest.mark.parametrize("name", ["tiny-llada", "tiny-dream"])
def test_what_is_committed_was_the_candidate(tiny: dict[str, Model], catalogue: Catalogue, name: str) -> None:
    """So candidates stand at the columns that they are candidates for, whatever the logit shift."""
    for event in list(make(tiny[name], catalogue).stream(ASKED))[:-1]:
        assert [event.frame.tokens[i] for i in event.positions] == [event.frame.guesses[i] for i in event.positions]


def test_text_and_draft_are_the_answer_as_it_stands(pipe: Pipeline) -> None:
    codec = pipe.model.codec
    assert codec is not None
    drafts = 0
    for event in pipe.stream(ASKED):
        standing = [token for token in (*event.settled, *event.drafted) if token != pipe.model.spec.mask_id]
        assert (event.text + event.draft).replace("·", "") == codec.decode(standing)
        drafts += bool(event.draft)
    assert drafts


def test_policies_that_take_back_settle_a_block_only_when_it_is_over(
    tiny: dict[str, Model], catalogue: Catalogue
) -> None:
    pipe = make(tiny["tiny-llada"], catalogue, "es-dllm-parallel", unmasking={"name": "wino"})
    events = list(pipe.stream(ASKED))
    for event in events[:-1]:
        assert event.frame.revises
        assert not set(range(len(event.settled))) & set(event.frame.block)
    assert "".join(event.new for event in events) == pipe(ASKED).text


@pytest.mark.serial
def test_the_run_waits_for_whoever_iterates(pipe: Pipeline) -> None:
    stream = pipe.stream(ASKED)
    first = next(stream)
    time.sleep(0.3)
    ahead = stream.answer.forwards
    assert first.frame.forwards == 1
    assert ahead <= 3  # the one that was taken, the one that waits to be, the one that waits for room
    stream.close()


@pytest.mark.serial
def test_waiting_is_no_time_of_the_decoding(pipe: Pipeline) -> None:
    started = time.perf_counter()
    stream = pipe.stream(ASKED)
    for event in stream:
        if event.frame.forwards == 1:
            time.sleep(2.0)  # in which the run makes two steps more at most
    assert 0 < stream.answer.seconds < time.perf_counter() - started - 1.0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_a_stream_that_is_left_stops_within_a_step_and_frees_its_thread(pipe: Pipeline, how: str) -> None:
    stream = pipe.stream(ASKED)
    next(stream)
    assert len(threads()) == 1
    if how == "close":
        stream.close()
    elif how == "with":
        with stream:
            pass
    forwards = stream.answer.forwards
    del stream
    gc.collect()
    assert threads() == []
    assert forwards <= 3
    assert pipe(ASKED).complete  # the pipeline is free again


def test_a_closed_stream_has_ended_and_keeps_what_is_decided(pipe: Pipeline) -> None:
    stream = pipe.stream(ASKED)
    events = [next(stream) for _ in range(6)]
    stream.close()
    answer = stream.answer
    assert list(stream) == []
    assert not answer.complete
    assert len(answer.tokens) >= sum(token != pipe.model.spec.mask_id for token in events[-1].settled)
    assert set(answer.tokens) <= set(pipe(ASKED).tokens)
    assert answer.text.count("…") >= 1
    assert stream.answer is answer


def test_what_the_run_raises_surfaces_where_the_stream_is_read(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match="prompt 0 is empty"):
        next(pipe.stream(""))
    assert threads() == []
    with pytest.raises(InputError, match="exceed the model's context of 1024"):
        list(pipe.stream("word " * 2000))
    assert pipe(ASKED).complete


@pytest.mark.parametrize("prompts", [[], ["a"], ["a", "b"], [[1, 2]], [[{"role": "user", "content": "a"}]]])
def test_a_stream_is_of_one_prompt(pipe: Pipeline, prompts: Any) -> None:
    with pytest.raises(InputError, match="a stream is of one prompt"):
        pipe.stream(prompts)


@pytest.mark.parametrize("prompt", [None, 3, 0.5, b"a", object()])
def test_what_is_no_prompt_is_refused_at_the_call_with_what_would_do(pipe: Pipeline, prompt: Any) -> None:
    with pytest.raises(InputError, match=r"prompts cannot be .*; give text, a list of token ids, a conversation"):
        pipe.stream(prompt)


def test_a_pipeline_that_is_decoding_says_so(pipe: Pipeline) -> None:
    with pipe.stream(ASKED) as stream:
        next(stream)
        with pytest.raises(InputError, match=r"is decoding already; close its open stream first, or make another"):
            pipe(ASKED)
        assert pipe.configured()(ASKED).complete  # another has a cache of its own
    assert pipe(ASKED).complete


def test_token_ids_and_conversations_stream_too(pipe: Pipeline, llada: Model, catalogue: Catalogue) -> None:
    talk = [{"role": "user", "content": ASKED}]
    assert list(pipe.stream(talk))[-1].text == pipe(ASKED).text  # type: ignore[arg-type]
    plain = make(llada, catalogue)
    last = list(plain.stream([1, 2, 3]))[-1]
    assert last.text == last.draft == ""
    assert last.settled == plain([[1, 2, 3]])[0].tokens


# transformers' convention


class Streamer:
    """Notes what it is given, as transformers' streamers are."""

    def __init__(self) -> None:
        self.said: list[tuple[str, list[int]]] = []

    def put(self, value: torch.Tensor) -> None:
        assert value.shape[0] == 1
        assert value.dtype == torch.int64
        self.said.append(("put", value[0].tolist()))

    def end(self) -> None:
        self.said.append(("end", []))


class Drafter(Streamer):
    """One that wants drafts too."""

    def put_draft(self, value: torch.Tensor) -> None:
        self.said.append(("draft", value[0].tolist()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Streamer, Drafter])
def test_a_streamer_is_put_the_prompt_then_the_answer_in_order_each_token_once(
    pipe: Pipeline, kind: type[Streamer]
) -> None:
    codec, streamer = pipe.model.codec, kind()
    assert codec is not None
    answer = pipe(ASKED, streamer=streamer)
    puts = [tokens for what, tokens in streamer.said if what == "put"]
    assert puts[0] == codec.encode_chat([{"role": "user", "content": ASKED}])
    assert [token for tokens in puts[1:] for token in tokens] == list(answer.tokens)
    assert [what for what, _ in streamer.said].count("end") == 1
    assert streamer.said[-1] == ("end", [])
    assert any(what == "draft" for what, _ in streamer.said) == (kind is Drafter)
    assert answer.text == pipe(ASKED).text


def test_what_is_put_and_drafted_is_never_more_than_the_canvas(pipe: Pipeline) -> None:
    streamer, put = Drafter(), 0
    pipe(ASKED, streamer=streamer)
    for what, tokens in streamer.said[1:]:
        put += len(tokens) if what == "put" else 0
        assert what != "draft" or put + len(tokens) <= pipe.config.gen_length


def test_transformers_own_streamers_print_the_answer(pipe: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import PreTrainedTokenizerFast, TextStreamer

    tokenizer: PreTrainedTokenizerFast = pipe.model.codec._tokenizer  # type: ignore[union-attr]
    answer = pipe(ASKED, streamer=TextStreamer(tokenizer, skip_prompt=True))  # type: ignore[no-untyped-call]
    assert capsys.readouterr().out.strip() == answer.text


def test_transformers_diffusion_streamer_prints_drafts_and_the_answer(
    pipe: Pipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    import transformers

    kind = getattr(transformers, "TextDiffusionStreamer", None) or pytest.skip("transformers has no diffusion streamer")
    answer = pipe(ASKED, streamer=kind(pipe.model.codec._tokenizer, skip_prompt=True))  # type: ignore[union-attr]
    out = capsys.readouterr().out
    assert "\033[33m" in out
    assert out.rsplit("\033[J", 1)[-1].strip() in answer.text
    assert out.rstrip().endswith(answer.text[-5:])


def test_a_streamer_is_shown_one_text(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match="a streamer is shown one answer"):
        pipe([ASKED], streamer=Streamer())  # type: ignore[call-overload]


@pytest.mark.parametrize("name", ["tiny-llada", "tiny-dream"])
def test_a_frame_tells_which_positions_the_step_computed(
    tiny: dict[str, Model], catalogue: Catalogue, name: str
) -> None:
    """As many as the plan says; those that were decided among them."""
    skipped = 0
    for event in list(make(tiny[name], catalogue).stream(ASKED))[:-1]:
        frame = event.frame
        assert frame.computed is not None
        assert frame.plan is not None
        assert sum(frame.computed) == frame.plan.decided
        assert all(frame.computed[i] for i in event.positions)
        skipped += frame.plan.skips
    assert skipped
