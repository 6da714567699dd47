"""What an evaluation promises: contenders meet on the same problems, what is counted is what was decoded, errors come first."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from esdllm import Catalogue, Engine, InputError, Message, Model, Problem, UnavailableError
from esdllm.measure.evaluation import (
    Contender,
    Evaluation,
    EvaluationInterrupted,
    evaluate,
)
from esdllm.measure.evaluation.measure import _generate
from esdllm.runtime.run import StepFunction
from esdllm.testing.tape import record_steps

CASES = Path(__file__).parent / "conformance"
SHORT = {"gen_length": 8, "block_length": 4}
PROBLEMS = tuple(
    Problem(prompt, answer, task)
    for prompt, answer, task in (
        ("one", "a", "x"), ("fourteen more", "b", "x"), ("two", "c", "y"), ("seventeen", "d", "y"), ("five and six", "e", "y")
    )
)  # fmt: skip


class Letters:
    """A codec of one token a letter."""

    stop_ids = (253,)
    has_chat = True

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 250 for letter in text]

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        return [251, *self.encode(messages[-1]["content"]), 252]

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        return "".join(chr(32 + token) for token in ids)


@attrs.frozen
class Even:
    """Right is an answer whose first letter has an even number."""

    hint: str = ""

    @property
    def settings(self) -> Mapping[str, Any]:
        return SHORT

    def problems(self) -> Sequence[Problem]:
        return PROBLEMS

    def correct(self, problem: Problem, answer: str) -> bool:
        return ord(answer[0]) % 2 == 0


@pytest.fixture(scope="module")
def model(llada: Model) -> Model:
    return Model(llada.adapter, Letters())


@pytest.fixture(scope="module")
def measured(model: Model, catalogue: Catalogue) -> Evaluation:
    """Vanilla, es-dllm and es-dllm under another name, in batches of 2."""
    texts = ("vanilla", "es-dllm", "es-dllm seed=0", "vanilla gen_length=4")
    contenders = [Contender.of(text, catalogue, SHORT) for text in texts]
    return evaluate(model, Even(), PROBLEMS, contenders, names=("m", "s", "all"), batch_size=2, catalogue=catalogue)


def asks(model: Model, catalogue: Catalogue, *texts: str, **options: Any) -> Evaluation:
    contenders = [Contender.of(text, catalogue, SHORT) for text in texts]
    return evaluate(
        model, Even(), options.pop("problems", PROBLEMS), contenders, catalogue=catalogue, warm_up=False, **options
    )


def test_the_reference_agrees_with_itself_and_loses_nothing(measured: Evaluation) -> None:
    reference = measured.reference
    assert measured.agreement(reference) == 1
    assert measured.compute_share(reference) == 1
    assert measured.speedup(reference) == (1, 1, 1, 0.75)
    assert measured.loss(reference).value == 0


def test_equal_configurations_give_equal_results_under_any_name(measured: Evaluation) -> None:
    one, other = measured.outcomes[1:3]
    assert one.config == other.config
    assert one.name != other.name
    assert (one.answers, one.tokens, one.right) == (other.answers, other.tokens, other.right)
    assert (one.forwards, one.layer_work) == (other.forwards, other.layer_work)


def test_the_answers_are_the_engine_s_in_the_problems_order(
    measured: Evaluation, model: Model, catalogue: Catalogue
) -> None:
    assert measured.problems == PROBLEMS
    for outcome in (measured.outcomes[0], measured.outcomes[3]):
        engine = Engine.build(model, outcome.config, catalogue)
        alone = [engine.generate(problem.prompt, chat=True) for problem in PROBLEMS]
        assert outcome.answers == tuple(text for one in alone for text in one.text or ())
        assert outcome.tokens == tuple(tuple(one.answers[0]) for one in alone)


def test_a_suite_judges_and_scores_count_what_it_says(measured: Evaluation) -> None:
    for outcome in measured.outcomes:
        assert outcome.right == tuple(ord(answer[0]) % 2 == 0 for answer in outcome.answers)
        assert measured.score(outcome).value == sum(outcome.right) / len(PROBLEMS)
        by_task = [measured.score(outcome, task).value for task in ("x", "y")]
        assert (2 * by_task[0] + 3 * by_task[1]) / 5 == pytest.approx(measured.score(outcome).value)
    assert measured.tasks == ["x", "y"]


def test_layer_work_is_the_plans_times_the_rows(measured: Evaluation, model: Model, catalogue: Catalogue) -> None:
    class Plans:
        work = 0

        def start(self, *_: object) -> None: ...

        def step(self, record: Any) -> None:
            self.work += record.plan.layer_work() * record.tokens.shape[0]

        def end(self) -> None: ...

    lengths = sorted(range(5), key=lambda i: -len(PROBLEMS[i].prompt))
    for outcome in measured.outcomes:
        watch, engine = Plans(), Engine.build(model, outcome.config, catalogue)
        passes = 0
        for first in (0, 2, 4):
            rows = lengths[first : first + 2]
            result = engine.generate([PROBLEMS[i].prompt for i in rows], chat=True, observers=[watch])
            passes += result.forwards * len(rows)
        assert outcome.layer_work == watch.work
        assert outcome.forwards_per_answer == pytest.approx(passes / 5)
        assert outcome.tokens_per_forward == pytest.approx(sum(map(len, outcome.tokens)) / passes)


def test_vanilla_decoding_computes_every_layer_of_every_position(model: Model, catalogue: Catalogue) -> None:
    found = asks(model, catalogue, "vanilla early_stop=false", "dual-cache early_stop=false", batch_size=2)
    columns = 2 * (15 + 8) + 2 * (11 + 8) + (5 + 8)  # the batch's longest prompt with the template's 2, the answer
    assert found.reference.layer_work == 8 * 8 * columns  # layers, steps
    assert found.reference.forwards == 3 * 8
    cached = 2 * columns + 6 * 4 * 5  # two steps compute all, the others a block in 5 rows
    assert found.compute_share(found.outcomes[1]) == pytest.approx(cached / (8 * columns))


def test_scores_do_not_depend_on_the_order_of_the_problems(
    model: Model, catalogue: Catalogue, measured: Evaluation
) -> None:
    mixed = list(PROBLEMS)
    random.Random(1).shuffle(mixed)
    found = asks(model, catalogue, "vanilla", "es-dllm", problems=mixed, batch_size=2)
    for outcome, expected in zip(found.outcomes, measured.outcomes, strict=False):
        assert dict(zip(mixed, outcome.answers, strict=True)) == dict(zip(PROBLEMS, expected.answers, strict=True))
        assert outcome.layer_work == expected.layer_work
        assert found.score(outcome) == measured.score(expected)


def test_vanilla_answers_alike_in_batches_of_any_size(model: Model, catalogue: Catalogue) -> None:
    alone, together = (asks(model, catalogue, "vanilla", batch_size=size).reference for size in (1, 4))
    assert alone.tokens == together.tokens
    assert [batch.rows for batch in alone.batches] == [1] * 5
    assert [batch.rows for batch in together.batches] == [4, 1]


def test_progress_counts_every_answer_of_every_contender(model: Model, catalogue: Catalogue) -> None:
    told: dict[str, list[int]] = {"vanilla": [], "es-dllm": []}
    asks(model, catalogue, *told, batch_size=2, progress=lambda name, done: told[name].append(done))
    assert {name: sorted(counts) for name, counts in told.items()} == {"vanilla": [1, 2, 2], "es-dllm": [1, 2, 2]}


def test_the_longest_prompts_are_decoded_first_and_contenders_take_turns(model: Model, catalogue: Catalogue) -> None:
    order: list[str] = []
    first = asks(
        model, catalogue, "vanilla", "es-dllm", batch_size=2, progress=lambda name, _: order.append(name)
    ).reference.batches[0]
    assert order == ["vanilla", "es-dllm", "es-dllm", "vanilla", "vanilla", "es-dllm"]
    assert first.layer_work == 2 * first.forwards * 8 * (len("fourteen more") + 2 + 8)


def test_chat_is_the_template_s_if_there_is_one_unless_refused(model: Model, catalogue: Catalogue) -> None:
    default, yes, no = (asks(model, catalogue, "vanilla", chat=chat).reference for chat in (None, True, False))
    assert default.tokens == yes.tokens
    assert default.layer_work == yes.layer_work > no.layer_work


def test_an_interrupted_evaluation_holds_what_all_contenders_answered(model: Model, catalogue: Catalogue) -> None:
    told: list[int] = []

    def stop(name: str, done: int) -> None:
        told.append(done)
        if len(told) == 3:
            raise KeyboardInterrupt

    with pytest.raises(EvaluationInterrupted) as caught:
        asks(model, catalogue, "vanilla", "es-dllm", batch_size=2, progress=stop)
    evaluation, whole = caught.value.evaluation, asks(model, catalogue, "vanilla", "es-dllm", batch_size=2)
    assert set(evaluation.problems) == {PROBLEMS[1], PROBLEMS[4]}
    for outcome, expected in zip(evaluation.outcomes, whole.outcomes, strict=True):
        assert outcome.answers == (expected.answers[1], expected.answers[4])
        assert len(outcome.batches) == 1
    assert [one["speedup"]["value"] for one in json.loads(json.dumps(evaluation.to_dict()))["contenders"]] == [
        None,
        None,
    ]


def test_an_evaluation_that_measured_nothing_is_just_interrupted(model: Model, catalogue: Catalogue) -> None:
    def stop(name: str, done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        asks(model, catalogue, "vanilla", "es-dllm", progress=stop)
    assert not isinstance(caught.value, EvaluationInterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("recorded", [False, True], ids=["compiled", "recorded"])
def test_a_generation_in_which_something_was_compiled_or_recorded_is_made_again(
    recorded: bool, model: Model, catalogue: Catalogue
) -> None:
    settings = ["gen_length=8", "block_length=8", "early_stop=false"]
    engine = Engine.build(model, catalogue.configure("vanilla", sets=settings), catalogue)
    expected, tape, given = engine.generate([[5, 6, 7]]).tokens, record_steps(engine), [[5, 6, 7]]
    if not recorded:
        engine.step_function = StepFunction(compiled=True, backend="eager")
    for again in (True, False):
        before, runs = engine.step_function.made, sum(tape.replays)
        found = _generate(engine, given)
        assert torch.equal(found.tokens, expected)
        assert found.compile_seconds == 0.0
        assert (engine.step_function.made > before) is again
        assert not recorded or sum(tape.replays) - runs >= found.forwards
    assert engine.cache is not None  # which recorded steps hold


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problems": ()}, r"0 problems and 1 contenders; give at least one of each"),
        ({"batch_size": 0}, r"batch_size = 0; give at least 1"),
        ({"problems": [Problem("a", ""), Problem("\ud800", "")]}, r"problem 2, .*not valid UTF-8 at character 0"),
        ({"problems": [Problem("a", ""), Problem("", "")]}, r"problem 2, '': "),
        ({"problems": [Problem("a" * 5000, "")]}, r"problem 1, 'a+': 5002 prompt tokens and 8 to generate exceed"),
    ],
)
def test_what_cannot_be_decoded_is_found_before_anything_is(
    model: Model, catalogue: Catalogue, change: dict[str, Any], message: str
) -> None:
    told: list[str] = []
    with pytest.raises(InputError, match=message):
        asks(model, catalogue, "vanilla", progress=lambda name, _: told.append(name), **change)
    assert not told


def test_contenders_of_one_name_are_refused(model: Model, catalogue: Catalogue) -> None:
    with pytest.raises(InputError, match=r"two contenders are named 'vanilla'; leave one out"):
        asks(model, catalogue, "vanilla", "vanilla")


def test_a_model_without_tokenizer_or_values_is_refused(llada: Model, catalogue: Catalogue) -> None:
    with pytest.raises(InputError, match=r"the model has no tokenizer, and problems are text"):
        asks(Model(llada.adapter), catalogue, "vanilla")
    with pytest.raises(InputError, match=r"problems are text: no such file"):
        asks(Model(llada.adapter, codec_error="no such file"), catalogue, "vanilla")

    class Shapes:
        device = torch.device("meta")

    with pytest.raises(UnavailableError, match=r"the device 'meta' computes no values"):
        asks(Model(Shapes(), Letters()), catalogue, "vanilla")  # type: ignore[arg-type]


def test_an_evaluation_goes_through_json_and_its_numbers_are_the_outcomes(measured: Evaluation) -> None:
    told = json.loads(json.dumps(measured.to_dict(), allow_nan=False))
    assert (told["model"], told["suite"], told["split"], told["problems"], told["batch_size"]) == (
        "m",
        "s",
        "all",
        5,
        2,
    )
    assert told["reference"] == told["contenders"][0]["name"] == "vanilla"
    assert told["environment"]["torch"] == torch.__version__
    for one, outcome in zip(told["contenders"], measured.outcomes, strict=True):
        assert one["compute_share"] == outcome.layer_work / measured.reference.layer_work
        assert one["exact_match"]["value"] == sum(outcome.right) / 5
        assert one["loss"]["value"] == pytest.approx((sum(measured.reference.right) - sum(outcome.right)) / 5)
        ratios = [
            theirs.seconds / own.seconds
            for theirs, own in zip(measured.reference.batches, outcome.batches, strict=True)
        ]
        assert one["speedup"] == {
            "value": pytest.approx(sorted(ratios)[1]),
            "low": pytest.approx(min(ratios)),
            "high": pytest.approx(max(ratios)),
            "confidence": 0.75,
            "batches": 3,
            "note": None,
        }
        assert one["tokens_per_second"] == pytest.approx(outcome.answer_tokens / outcome.seconds)
        assert one["seconds"] == pytest.approx(sum(batch.seconds for batch in outcome.batches))
        assert Contender.of("vanilla", Catalogue.load(), one["config"]).config == outcome.config
