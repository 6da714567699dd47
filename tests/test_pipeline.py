"""The pipeline's laws: it says what the engine says, in any order of prompts; its answers tell what they took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from helpers import CASES

import esdllm
from esdllm import Answer, Answers, Catalogue, InputError, Model, Pipeline, load_model
from esdllm.use.blanks import parse_template

SHORT: dict[str, Any] = {"gen_length": 16, "block_length": 8}
ASKED = ["Who are you?", "What is 12 + 7?", "Sort these numbers from small to large: 31, 4, 15."]


@pytest.fixture(scope="module")
def tiny(catalogue: Catalogue) -> Model:
    return load_model("tiny-llada", "cpu", catalogue=catalogue)


@pytest.fixture
def pipe(tiny: Model, catalogue: Catalogue) -> Pipeline:
    return Pipeline.of(tiny, catalogue.configure("es-dllm", settings=SHORT), catalogue)


def test_an_answer_is_the_engine_s(pipe: Pipeline) -> None:
    expected = pipe.engine.generate(ASKED[1], chat=True)
    answer = pipe(ASKED[1])
    assert expected.text is not None
    assert (answer.text, list(answer.tokens), answer.forwards) == (
        expected.text[0],
        expected.answers[0],
        expected.forwards,
    )
    assert answer.tokens_per_forward == expected.tokens_per_forward
    assert answer.prompt == ASKED[1]
    assert answer.complete


def test_a_checkpoint_and_settings_make_a_pipeline(pipe: Pipeline) -> None:
    found = Pipeline.from_pretrained(
        "tiny-llada", preset="es-dllm", device="cpu", sets=["gen_length=16"], block_length=8
    )
    assert found.config == pipe.config
    assert found(ASKED[0]).text == pipe(ASKED[0]).text


@pytest.mark.slow
@pytest.mark.parametrize("chat", [None, False])
def test_several_answers_are_each_prompt_s_own_whatever_the_batch(pipe: Pipeline, chat: bool | None) -> None:
    """Under vanilla decoding, where nothing that one row does shows in another."""
    plain = pipe.configured("vanilla", **SHORT)
    alone = [plain(prompt, chat=chat) for prompt in ASKED]
    for batch in (1, 2, 8):
        found = plain(ASKED, chat=chat, batch=batch)
        assert [answer.tokens for answer in found] == [answer.tokens for answer in alone]
        assert [answer.prompt for answer in found] == ASKED


def test_what_answers_took_adds_up_over_their_batches(pipe: Pipeline) -> None:
    found = pipe(ASKED, batch=2)
    assert found.forwards == found[0].forwards + found[2].forwards  # the longest two go together
    assert found[1].forwards in (found[0].forwards, found[2].forwards)
    assert found.tokens_per_forward == sum(len(answer.tokens) for answer in found) / found.forwards


def test_each_prompt_has_its_own_seed(pipe: Pipeline) -> None:
    warm = pipe.configured(sets=["sampler.temperature=20.0"])
    found = warm([ASKED[0]] * 3, seed=[1, 2, 1])
    assert found[0].tokens == found[2].tokens != found[1].tokens


def test_a_conversation_goes_on_with_the_answer_s_message(pipe: Pipeline) -> None:
    first = pipe.chat([{"role": "user", "content": ASKED[0]}])
    assert first.text == pipe(ASKED[0]).text
    talk = [{"role": "user", "content": ASKED[0]}, first.message, {"role": "user", "content": ASKED[1]}]
    answer = pipe.chat(talk)  # type: ignore[arg-type]
    assert answer.prompt == ASKED[1]
    assert answer.text == pipe([talk])[0].text  # type: ignore[list-item]


def test_settings_go_over_a_pipeline_s_own_and_a_preset_begins_anew(pipe: Pipeline) -> None:
    longer = pipe.configured(gen_length=24, importance={"alpha": 0.7})
    assert longer.model is pipe.model
    assert (longer.config.gen_length, longer.config.block_length) == (24, 8)
    assert longer.config.importance.options["alpha"] == 0.7
    assert pipe.configured("vanilla").config == esdllm.configure("vanilla")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "es-dlm"}, "unknown preset 'es-dlm'; did you mean 'es-dllm'"),
        ({"gen_lenght": 3}, "unknown setting 'gen_lenght'; did you mean 'gen_length'"),
        ({"sets": ["importance.alpa=0.3"]}, "alpa"),
    ],
)
def test_a_wrong_setting_is_found_before_weights_are_read(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(esdllm.ConfigError, match=message):
        Pipeline.from_pretrained("no-such-model", **settings)


# blanks


def test_a_blank_is_filled_with_as_many_tokens_as_it_has(pipe: Pipeline) -> None:
    codec, mask = pipe.model.codec, pipe.model.spec.mask_id
    assert codec is not None
    found = pipe.infill("The smallest number is [MASK:2], or [MASK].")
    canvas = codec.encode("The smallest number is ") + [mask] * 2 + codec.encode(", or ") + [mask] + codec.encode(".")
    (expected,) = pipe.engine.generate([canvas], infill=True).answers
    assert found.tokens == tuple(token for token, given in zip(expected, canvas, strict=True) if given == mask)
    assert found.text.split() == codec.decode(expected).split()
    assert found.pieces == ("The smallest number is ", ", or ", ".")
    assert "".join(a + b for a, b in zip(found.pieces, (*found.fills, ""), strict=True)) == found.text


def test_several_texts_are_filled_in_together(pipe: Pipeline) -> None:
    texts = ["The answer is [MASK:3].", "[MASK:2] numbers"]
    found = pipe.infill(texts)
    assert [answer.prompt for answer in found] == texts
    assert [len(answer.tokens) for answer in found] == [3, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("The cat sat.", r"nothing to fill in in 'The cat sat.'; write \[MASK:4\] where 4 tokens are missing"),
        ("The [MASK:0] sat.", r"'\[MASK:0\]' at character 4 is no blank; write \[MASK:4\]"),
        ("The [mask] sat.", r"'\[mask\]' at character 4 is no blank"),
        ("The [MASK: 3] sat.", r"'\[MASK: 3\]' at character 4 is no blank"),
        ("The [MASK:3 sat", r"'\[MASK:3 sat' at character 4 is no blank"),
    ],
)
def test_a_wrong_blank_is_an_error_that_teaches(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_template(text)


def test_brackets_that_are_no_masks_are_text() -> None:
    assert parse_template("x[0] = [MASK:2] [masked]").pieces == ("x[0] = ", " [masked]")


# errors


def test_prompts_that_cannot_be_decoded_say_why(pipe: Pipeline) -> None:
    with pytest.raises(InputError, match="prompt 0 is empty"):
        pipe("")
    with pytest.raises(InputError, match="prompt 1 is empty"):
        pipe(["Who are you?", " "])
    with pytest.raises(InputError, match="there is no prompt"):
        pipe([])
    with pytest.raises(InputError, match="exceed the model's context of 1024; shorten the prompt or gen_length"):
        pipe("word " * 2000)
    with pytest.raises(InputError, match="2 seeds for 1 prompts"):
        pipe(["Who are you?"], seed=[1, 2])
    with pytest.raises(InputError, match="batch = 0; give at least 1"):
        pipe(["Who are you?"], batch=0)


def test_a_model_without_a_tokenizer_takes_token_ids_alone(llada: Model, catalogue: Catalogue) -> None:
    pipe = Pipeline.of(llada, catalogue.configure("es-dllm", settings=SHORT), catalogue)
    found = pipe([[1, 2, 3]])
    assert found[0].text == ""
    assert found[0].tokens
    assert found[0].prompt is None
    with pytest.raises(InputError, match=r"text needs a tokenizer: .*has no tokenizer"):
        pipe("Who are you?")
    with pytest.raises(InputError, match="text needs a tokenizer"):
        pipe.infill("[MASK] are you?")


def test_a_conversation_needs_a_chat_template(tiny: Model, pipe: Pipeline) -> None:
    class Plain:
        has_chat = False

        def __getattr__(self, name: str) -> Any:
            return getattr(tiny.codec, name)

    bare = Pipeline.of(attrs.evolve(tiny, codec=Plain()), pipe.config, pipe.catalogue)
    with pytest.raises(InputError, match="no chat template; pass its prompt as text"):
        bare.chat([{"role": "user", "content": "Hello"}])


# printing


def answer(**over: Any) -> Answer:
    made: dict[str, Any] = {"prompt": "a < b?", "text": "a < b & c", "tokens": (1, 2, 3), "forwards": 2, "seconds": 0.5}
    return Answer(**{**made, **over})


def test_an_answer_prints_its_text_and_what_it_took() -> None:
    assert str(answer()) == "a < b & c\n(3 tokens, 2 forwards, 1.50 tokens per forward, 0.50 s)"
    assert repr(answer()) == "Answer('a < b & c', 3 tokens, 2 forwards, 1.50 tokens per forward, 0.50 s)"
    assert str(answer(tokens=(1,), forwards=1, complete=False)).endswith(
        "(1 token, 1 forward, 1.00 tokens per forward, 0.50 s, stopped)"
    )


def test_a_notebook_shows_text_and_never_runs_it() -> None:
    for shown in (answer()._repr_html_(), Answers((answer(),), 2, 0.5)._repr_html_()):
        assert "a &lt; b &amp; c" in shown
        assert "1.50 tokens per forward" in shown
        assert "a < b" not in shown


def test_a_notebook_marks_what_was_filled_in(pipe: Pipeline) -> None:
    found = pipe.infill("<b>[MASK:2]</b>")
    shown = found._repr_html_()
    assert "&lt;b&gt;<mark" in shown
    assert "</mark>&lt;/b&gt;" in shown


def test_answers_are_a_sequence_that_prints_each(pipe: Pipeline) -> None:
    found = pipe(ASKED[:2])
    assert len(found) == 2
    assert list(found) == [found[0], found[1]] == list(found[:2])
    assert found.text == [found[0].text, found[1].text]
    assert str(found).splitlines()[0].startswith("1. ")
    assert str(found).splitlines()[-1] == f"({found.facts()})"
    assert found.facts().startswith("2 answers, ")


def test_results_do_not_change(pipe: Pipeline) -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        answer().text = "other"  # type: ignore[misc]


def test_a_folder_makes_a_pipeline() -> None:
    found = Pipeline.from_pretrained(Path(CASES / "llada-0"), device="cpu", **SHORT)
    assert repr(found) == "Pipeline(llada, gen_length=16, block_length=8)"
