"""Tuning: what is searched, what is chosen, what is kept of a search that was killed, what is written."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
import torch
from helpers import EOS, offers
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples

from esdllm import Catalogue, ConfigError, DecodeConfig, InputError, Model, Problem, UnavailableError
from esdllm.cli import main
from esdllm.config import merge, read_toml
from esdllm.interfaces import Suite
from esdllm.measure.evaluation import Contender
from esdllm.measure.tuning import Dimension, Goal, Search, Space, Trial, parted
from esdllm.measure.tuning.plots import plot_tuning
from esdllm.runtime.components import Components

pytestmark = pytest.mark.covers

LENGTHS = {"gen_length": 8, "block_length": 4}


class Letters:
    """Text to tokens, a letter each."""

    stop_ids = (EOS,)
    has_chat = False

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % 250 for letter in text]

    def encode_chat(self, messages: Sequence[Any]) -> list[int]:
        return self.encode(messages[-1]["content"])

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        return " ".join(map(str, ids))


@attrs.frozen
class Even:
    """Right is an answer whose first token is even: something that settings change at random."""

    settings: Mapping[str, Any] = attrs.field(factory=dict)

    def problems(self) -> Sequence[Problem]:
        return [Problem("".join(chr(97 + (3 * i + j * j) % 26) for j in range(4)), "") for i in range(12)]

    def correct(self, problem: Problem, answer: str) -> bool:
        return answer.split(" ")[0].endswith(("0", "2", "4", "6", "8"))


@pytest.fixture
def search(llada: Model, catalogue: Catalogue) -> Search:
    return make_search(llada, catalogue)


def make_search(model: Model, catalogue: Catalogue, **over: Any) -> Search:
    suite = Even()
    base = Contender.of("es-dllm-parallel", catalogue, LENGTHS)
    found = {
        "model": Model(model.adapter, Letters()),
        "suite": suite,
        "tune": suite.problems()[:6],
        "test": suite.problems()[6:],
        "reference": Contender.of("vanilla", catalogue, LENGTHS),
        "base": base,
        "space": Space.of(base.config, catalogue),
        "goal": Goal(max_loss=0.5, cost="work"),
        "names": ("random", "even"),
        "catalogue": catalogue,
    }
    return Search(**{**found, **over})


def test_the_space_is_what_the_components_say_can_be_tuned_less_what_is_fixed(catalogue: Catalogue) -> None:
    config = catalogue.configure("es-dllm-parallel")
    keys = [dimension.key for dimension in Space.of(config, catalogue).dimensions]
    periods = ["refresh.prompt_refresh", "refresh.block_refresh"]
    assert keys == [*periods, "skip.keep", "importance.alpha", "unmasking.threshold"]
    fewer = Space.of(config, catalogue, fixed=["importance.alpha", "skip.keep"]).dimensions
    assert [dimension.key for dimension in fewer] == [*periods, "unmasking.threshold"]
    assert "unmasking.threshold" not in {
        one.key for one in Space.of(catalogue.configure("es-dllm"), catalogue).dimensions
    }


def test_what_is_asked_for_replaces_what_a_component_says(catalogue: Catalogue) -> None:
    config = catalogue.configure("es-dllm")
    asked = ["importance.alpha=0.1,0.2", "importance.site=hidden, key", "block_length=4,8"]
    space = {one.key: one.tune for one in Space.of(config, catalogue, ["skip.keep"], asked).dimensions}
    assert "skip.keep" not in space
    assert space["importance.alpha"] == (0.1, 0.2)
    assert space["importance.site"] == ("hidden", "key")
    assert space["block_length"] == (4, 8)
    first = Space.of(config, catalogue, searched=asked).settings(lambda name, values: values[0])
    assert first["block_length"] == 4
    assert first["importance"] == {"alpha": 0.1, "site": "hidden"}


@pytest.mark.parametrize(
    "text",
    [
        "importance.alpha",
        "importance.alpha=1",
        "=1,2",
        "a.b=0.5,0.5",
        "a.b=x,,y",
        'a.b="x,y',
        "a.b=[1,2",
        "a.b=[1],[x]",
    ],
)
def test_a_dimension_needs_a_key_and_two_different_values(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"cannot search '.*'; write section\.option=value,value with two different values"
    ):
        Dimension.parse(text)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("true,false", (True, False)),
        ("1, true, 1.0", (1, True, 1.0)),
        ("-1,-0.5", (-1, -0.5)),
        ('"a,b","c"', ("a,b", "c")),
        ("hidden,0.5", ("hidden", 0.5)),
        ("[[0.0,1.0]],[[0.0,0.5]]", ([[0.0, 1.0]], [[0.0, 0.5]])),
    ],
)
def test_values_to_search_are_read_as_settings_are(text: str, values: tuple[Any, ...]) -> None:
    found = Dimension.parse(f"a.b={text}").tune
    assert found == values
    assert list(map(type, found)) == list(map(type, values))


@pytest.mark.parametrize(
    ("searched", "fixed", "message"),
    [
        (["importance.alfa=1,2"], [], "importance 'hybrid' has no option 'alfa'; did you mean 'alpha'"),
        (["importance.alpha=0.5,7"], [], "importance 'hybrid'.*alpha"),
        (["gen_len=8,16"], [], r"unknown setting 'gen_len'; did you mean 'gen_length'"),
        (
            ["gen_length=8,16"],
            [],
            "gen_length cannot be searched: the reference decodes with the same one; set it with -s",
        ),
        (["seed=8,16"], [], "seed cannot be searched"),
        (["importance.alpha=0,1"], ["importance.alpha"], "importance.alpha is set and searched too; leave out one"),
        (["importance=random,hybrid"], ["importance.alpha"], "importance is set and searched too; leave out one"),
        (
            ["importance=random,hybrid", "importance.alpha=0,1"],
            [],
            "importance and its option importance.alpha are searched",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(
    searched: list[str], fixed: list[str], message: str, catalogue: Catalogue
) -> None:
    with pytest.raises(ConfigError, match=message):
        Space.of(catalogue.configure("es-dllm"), catalogue, fixed, searched)


def test_where_a_component_is_searched_its_options_are_not(catalogue: Catalogue) -> None:
    config = catalogue.configure("es-dllm", sets=["importance.alpha=0.25"])
    space = Space.of(config, catalogue, searched=["importance=random,hybrid"])
    assert "importance.alpha" not in {one.key for one in space.dimensions}
    for number, name in enumerate(("random", "hybrid")):
        settings = space.settings(lambda key, values, n=number: values[min(n, len(values) - 1)])  # type: ignore[misc]
        made = DecodeConfig.from_dict(merge(config.to_dict(), settings))
        Components.resolve(made, catalogue)
        assert made.importance.name == name
    assert made.importance.options == {"alpha": 0.25}


def test_nothing_to_search_is_an_error(catalogue: Catalogue) -> None:
    with pytest.raises(ConfigError, match="nothing to search: every option that can be tuned is set; name some"):
        Space.of(catalogue.configure("vanilla"), catalogue, fixed=["importance.alpha"])


def test_a_third_party_s_component_says_itself_what_can_be_tuned() -> None:
    @attrs.frozen
    class Mine:
        """A scorer with a knob."""

        knob: float = attrs.field(default=1.0, metadata={"help": "how much", "tune": (1.0, 2.0)})

    catalogue = Catalogue.load({"mine": offers("esdllm_importance_scorers", {"mine": Mine})})
    config = catalogue.configure("es-dllm", sets=["importance=mine"])
    assert Dimension("importance.knob", (1.0, 2.0)) in Space.of(config, catalogue).dimensions


@pytest.mark.slow
@examples(60)
@given(data=st.data())
def test_every_point_of_the_space_is_a_configuration(data: st.DataObject) -> None:
    catalogue = Catalogue.load()
    config = catalogue.configure("es-dllm-parallel")
    found = Space.of(config, catalogue).settings(
        lambda name, values: data.draw(st.sampled_from(list(values)), label=name)
    )
    components = Components.resolve(DecodeConfig.from_dict(merge(config.to_dict(), found)), catalogue)
    counts = components.skip.keep_counts(16, 64, 1, 64)
    assert counts[-1] < 64  # skips


def test_the_base_is_tried_first_and_the_best_is_the_cheapest_within_the_tolerance(search: Search) -> None:
    told: list[tuple[Trial, Trial | None]] = []
    search.run(6, told=lambda trial, best: told.append((trial, best)))
    trials = search.trials()
    assert len(trials) == 6
    assert trials[0].settings == {}
    assert [trial for trial, _ in told] == trials
    allowed = [trial for trial in trials if trial.loss <= 0.5]
    assert allowed
    assert search.best() == max(allowed, key=lambda trial: trial.speedup)
    assert told[-1][1] == search.best()


def test_the_trial_s_numbers_are_those_of_its_setting(search: Search) -> None:
    search.run(3)
    trial, reference = search.trials()[2], search.reference_outcome()
    alone = make_search(search.model, search.catalogue, base=Contender("alone", search.configured(trial.settings)))
    alone.run(1)
    assert alone.trials()[0] == attrs.evolve(trial, settings={})
    assert reference.layer_work > 0
    assert trial.speedup > 1


@pytest.mark.slow
def test_equal_seeds_try_equal_settings(search: Search) -> None:
    other, third = (make_search(search.model, search.catalogue, seed=seed) for seed in (0, 1))
    for one in (search, other, third):
        one.run(4)
    assert search.trials() == other.trials()
    assert search.trials() != third.trials()


@pytest.mark.slow
def test_the_draws_of_one_seed_are_not_those_of_the_next(search: Search) -> None:
    other = make_search(search.model, search.catalogue, seed=1)
    for one in (search, other):
        one.run(6)
    assert not [trial for trial in search.trials()[1:] if trial in other.trials()[1:]]


def test_a_setting_that_is_drawn_again_is_not_measured_again(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    search.space = Space((Dimension("importance.alpha", (0.25, 0.75)),))
    measured: list[Any] = []
    record = Search._record

    def counted(self: Search, settings: Mapping[str, Any]) -> Trial:
        measured.append(settings)
        return record(self, settings)

    monkeypatch.setattr(Search, "_record", counted)
    search.run(7)
    assert len(search.trials()) == 7
    assert (
        measured == [{}, *({"importance": {"alpha": x}} for x in sorted({0.25, 0.75}, key=repr))] or len(measured) == 3
    )


@pytest.mark.slow
def test_a_search_goes_on_where_its_file_ends(search: Search, tmp_path: Path) -> None:
    file = tmp_path / "folder" / "study.journal"
    search.run(5)
    first = make_search(search.model, search.catalogue)
    assert first.open(file) == 0
    first.run(3)
    again = make_search(search.model, search.catalogue)
    assert again.open(file) == 3
    assert again.trials() == first.trials()
    again.run(5)
    assert again.trials() == search.trials()  # as if it had never stopped


def test_a_setting_that_a_killed_run_left_is_tried_again(
    search: Search, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search.open(tmp_path / "study.journal")
    search.run(2)

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Search, "_record", killed)
        with pytest.raises(KeyboardInterrupt):
            search.run(4)
    again = make_search(search.model, search.catalogue)
    assert again.open(tmp_path / "study.journal") == 2
    again.run(4)
    assert len(again.trials()) == 4


@pytest.mark.parametrize(
    ("over", "differs"),
    [
        ({"goal": Goal(max_loss=0.1), "batch_size": 3}, "goal, batch_size"),
        ({"tune": Even().problems()[1:7]}, "problems"),
        ({"seed": 1}, "seed"),
        ({"space": Space((Dimension("importance.alpha", (0.0, 1.0)),))}, "space"),
    ],
)
def test_a_file_of_another_search_is_refused(
    search: Search, tmp_path: Path, over: dict[str, Any], differs: str
) -> None:
    search.open(tmp_path / "study.journal")
    other = make_search(search.model, search.catalogue, **over)
    with pytest.raises(ConfigError, match=rf"study\.journal holds a search that differs in {differs}; name another"):
        other.open(tmp_path / "study.journal")


def test_other_values_of_the_same_setting_are_another_search(search: Search, tmp_path: Path) -> None:
    for values in ((0.0, 1.0), (0.0, 0.5)):
        search.space = Space((Dimension("importance.alpha", values),))
        if values == (0.0, 1.0):
            search.open(tmp_path / "study.journal")
    with pytest.raises(ConfigError, match="differs in space"):
        search.open(tmp_path / "study.journal")


def test_a_file_of_a_model_that_answers_otherwise_is_refused(search: Search, dream: Model, tmp_path: Path) -> None:
    search.open(tmp_path / "study.journal")
    search.run(1)
    other = make_search(dream, search.catalogue)
    other.open(tmp_path / "study.journal")
    with pytest.raises(ConfigError, match=r"study\.journal holds a search that differs in answers"):
        other.run(1)


@pytest.mark.parametrize("cost", ["time", "work"])
def test_times_of_other_thread_counts_are_another_search(
    search: Search, tmp_path: Path, cost: Literal["time", "work"], monkeypatch: pytest.MonkeyPatch
) -> None:
    goal = Goal(0.5, cost=cost)
    first, again = (make_search(search.model, search.catalogue, goal=goal) for _ in range(2))
    for one in (first, again):
        one.open(tmp_path / "study.journal")
    first.run(1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    with pytest.raises(ConfigError, match="differs in threads") if cost == "time" else nullcontext():
        again.run(1)


def test_two_searches_at_once_in_one_file_are_refused(search: Search, tmp_path: Path) -> None:
    search.open(tmp_path / "study.journal")
    other = make_search(search.model, search.catalogue)
    refused: list[str] = []

    def told(*_: Any) -> None:
        other.open(tmp_path / "study.journal")
        with pytest.raises(
            UnavailableError, match=r"another process is searching in .*study\.journal; wait for it"
        ) as said:
            other.run(1)
        refused.append(str(said.value))

    search.run(1, told=told)
    assert len(refused) == 1
    other.run(1)  # now it may


@pytest.mark.parametrize("text", ["Hello\n", '{"prompt": "Hello"}\n', "[1]\n", "\0\n"])
def test_a_file_that_holds_no_search_is_refused(search: Search, tmp_path: Path, text: str) -> None:
    file = tmp_path / "study.journal"
    file.write_text(text)
    with pytest.raises(UnavailableError, match=r"cannot keep the search in .*study\.journal: .*; name another file"):
        search.open(file)
    assert file.read_text() == text


def test_a_file_whose_last_line_was_cut_goes_on(search: Search, tmp_path: Path) -> None:
    file = tmp_path / "study.journal"
    search.open(file)
    search.run(3)
    file.write_bytes(file.read_bytes()[:-20])
    again = make_search(search.model, search.catalogue)
    assert again.open(file) == 2  # the third's end is what is missing
    again.run(4)
    assert len(again.trials()) == 4
    assert make_search(search.model, search.catalogue).open(file) == 4


def test_no_time_is_no_trial(search: Search) -> None:
    search.run(5, seconds=0.0)
    assert len(search.trials()) == 1  # the base


@pytest.mark.slow
def test_a_setting_whose_time_is_over_is_given_up_after_its_batch(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    search.batch_size = 1
    search.run(2)
    batches: list[int] = []

    def slow(suite: Suite, problem: Problem, answer: str) -> bool:
        batches.append(1)
        search._ends = 0.0  # the clock has run on
        return True

    monkeypatch.setattr(Even, "correct", slow)
    search.run(5, seconds=1000.0)
    assert len(batches) == 1
    assert len(search.trials()) == 2


def test_reference_and_base_have_to_decode_one_length(search: Search) -> None:
    search.reference = Contender.of("vanilla", search.catalogue, {**LENGTHS, "gen_length": 16})
    with pytest.raises(ConfigError, match="vanilla decodes 16 tokens and es-dllm-parallel 8: give both one gen_length"):
        search.open()


def test_what_only_the_validation_would_find_is_found_before_the_search(search: Search) -> None:
    search.test = [Problem("x" * search.model.spec.context, "")]
    with pytest.raises(InputError, match=r"the prompt 'x+': .* exceed the model's context"):
        search.open()
    search.test, search.base = [], attrs.evolve(search.base, name="vanilla")
    with pytest.raises(InputError, match="two contenders are named 'vanilla'"):
        search.open()


def test_tuning_and_validation_share_no_prompt_and_have_the_same_tasks() -> None:
    problems = [Problem(f"{task}{i % 5}", "", task) for i in range(10) for task in "ab"]
    tune, test = parted(problems)
    assert [one.prompt for one in tune] == ["a0", "b0", "a2", "b2", "a4", "b4"]
    assert [one.prompt for one in test] == ["a1", "b1", "a3", "b3"]
    assert [one.prompt for one in parted(problems, ["b"])[1]] == ["b1", "b3"]
    said = [Problem("x", "", split="tune"), Problem("y", "", split="tune"), Problem("x", "", split="test")]
    assert parted(said) == ([said[1]], [said[2]])


@pytest.mark.slow
def test_the_end_is_measured_on_other_problems_and_read_back_from_its_profile(search: Search, tmp_path: Path) -> None:
    search.run(3)
    tuning = search.finish()
    assert set(tuning.validation.problems) == set(search.test)
    assert [outcome.name for outcome in tuning.validation.outcomes] == ["vanilla", "es-dllm-parallel", "chosen"]
    assert tuning.config == search.configured(tuning.chosen.settings)
    assert tuning.holds == (tuning.loss.value <= 0.5)
    text = tuning.to_toml()
    versions = tuning.validation.environment
    assert text.startswith(
        f"# Tuned by esdllm {versions['esdllm']} for random on even, from es-dllm-parallel: 3 settings\n"
    )
    for told in (
        "# tried on 6 problems (seed 0), for the least work at a loss of at most 50 points.\n",
        "# On 6 other problems: ",
        f"with torch {versions['torch']}, {versions['threads']} threads, on cpu ",
    ):
        assert told in text
    (tmp_path / "tuned.toml").write_text(text)
    assert DecodeConfig.from_dict(read_toml(tmp_path / "tuned.toml")) == tuning.config
    plot_tuning(tuning, tmp_path / "tuned.png")
    assert (tmp_path / "tuned.png").stat().st_size > 5000


def test_no_setting_within_the_tolerance_is_an_error_that_names_the_least_loss(search: Search) -> None:
    search.goal = Goal(max_loss=0.0, quality="agreement", cost="work")
    search.base = Contender(
        "other", attrs.evolve(search.base.config, seed=1, sampler={"name": "gumbel", "temperature": 2.0})
    )
    search.run(1)
    with pytest.raises(
        InputError, match=r"none of 1 settings is within 0 points of the reference: the least loss is \d+\.\d points"
    ):
        search.finish()


@pytest.mark.parametrize(
    "wrong", [{"cost": "money"}, {"quality": "beauty"}, {"max_loss": 1.0}, {"max_loss": float("nan")}]
)
def test_a_goal_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Goal(**wrong)


def test_the_loss_of_answers_is_turned_as_a_loss_is(search: Search) -> None:
    reference = attrs.evolve(search.reference_outcome(), right=(True,) * 60)
    loss = Goal().loss(attrs.evolve(reference, right=(False, True) * 30), reference)
    assert loss.value == 0.5
    assert 0 < loss.low < 0.5 < loss.high < 1


def test_the_interval_of_agreement_is_student_s(search: Search) -> None:
    reference = attrs.evolve(search.reference_outcome(), tokens=((1, 2),) * 4)
    outcome = attrs.evolve(reference, tokens=((1, 2), (1, 3), (4, 2), (1, 2)))
    # losses 0, .5, .5, 0: mean .25, deviation sqrt(.25 / 3), error sqrt(1 / 48), 3.182 of them at 3 degrees of freedom
    found = Goal(quality="agreement").loss(outcome, reference)
    assert found == pytest.approx((0.25, 0.0, 0.25 + 3.182 / 48**0.5), rel=0.01)
    many = attrs.evolve(outcome, tokens=outcome.tokens * 25)
    assert Goal(quality="agreement").loss(many, attrs.evolve(reference, tokens=reference.tokens * 25)) == pytest.approx(
        (0.25, 0.25 - 1.984 * (0.0625 / 99) ** 0.5, 0.25 + 1.984 * (0.0625 / 99) ** 0.5), rel=1e-3
    )


def test_one_prompt_says_nothing_of_others(search: Search) -> None:
    one = attrs.evolve(search.reference_outcome(), tokens=((1, 2),))
    assert Goal(quality="agreement").loss(one, one) == (0.0, 0.0, 1.0)


def test_agreement_with_itself_loses_nothing(search: Search) -> None:
    reference = search.reference_outcome()
    assert Goal(quality="agreement").loss(reference, reference).value == 0.0
    changed = attrs.evolve(reference, tokens=tuple((-1, *row[1:]) for row in reference.tokens))
    lost = Goal(quality="agreement").loss(changed, reference).value
    assert lost == pytest.approx(sum(1 / len(row) for row in reference.tokens) / len(reference.tokens))
    assert Goal(cost="work").cost_of(reference) == reference.layer_work
    assert Goal(cost="time").cost_of(reference) == reference.seconds


def test_tuning_without_optuna_says_what_to_install(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UnavailableError, match=r'tuning needs optuna: pip install "esdllm\[tune\]"'):
        search.open()


@pytest.mark.slow
def test_the_command_tunes_on_prompts_and_writes_a_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    (tmp_path / "prompts.txt").write_text("Hello\nHi\n\nWho are you?\nHelp\n")
    out, plot, study = tmp_path / "fast.toml", tmp_path / "fast.svg", tmp_path / "fast.journal"
    words = [
        "tune",
        "--prompts",
        tmp_path / "prompts.txt",
        "-o",
        out,
        "--plot",
        plot,
        "--study",
        study,
        "--cost",
        "work",
    ]
    words += ["--max-loss", "0.9", "-s", "gen_length=8", "-s", "block_length=4", "--trials", "2", "-m", "tiny-llada"]
    assert main([str(word) for word in words]) == 0
    printed = capsys.readouterr()
    assert "chosen:" in printed.out
    assert "right" not in printed.out  # nobody says what is
    assert "the same" in printed.out
    assert "% of tokens the same as vanilla's" in out.read_text()
    assert f"profile: {out}, plot: {plot}" in printed.err
    assert read_toml(out)["gen_length"] == 8
    assert "<svg" in plot.read_text()
    assert main([str(word) for word in [*words, "--json"]]) == 0
    printed = capsys.readouterr()
    assert "going on: 2 settings are tried already" in printed.err
    found = json.loads(printed.out)
    assert found["goal"]["quality"] == "agreement"
    assert "exact_match" not in found["validation"]["contenders"][0]


def tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: str) -> Search:
    """Return the search that a command line makes, which is not run."""
    made: list[Search] = []

    def stop(self: Search, *_: Any) -> None:
        made.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "run", stop)
    assert main(["tune", "-o", str(tmp_path / "t.toml"), "-m", "tiny-llada", *words]) == 130
    return made[0]


def test_the_reference_gets_what_is_asked_and_not_what_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["-p", "es-dllm/llada-instruct/gsm8k", "--count", "2", "--test-count", "2", "--seed", "3"]
    sets = [
        "unmasking=threshold",
        "importance.alpha=0.5",
        "sampler.temperature=0.5",
        "attention=eager",
        "early_stop=false",
    ]
    search = tuned(monkeypatch, tmp_path, *words, *(word for one in sets for word in ("-s", one)))
    base, reference = search.base.config, search.reference.config
    assert (base.unmasking.name, reference.unmasking.name) == ("threshold", "top-k")
    for key in ("gen_length", "block_length", "sampler", "attention", "early_stop"):
        shared = getattr(base, key), getattr(reference, key)
        assert shared[0] == shared[1] or key == "sampler"
    assert reference.sampler.options == {"temperature": 0.5}
    assert not {"importance.alpha"} & {one.key for one in search.space.dimensions}
    assert search.seed == 3


@pytest.mark.slow
def test_options_in_a_table_are_fixed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = '{name = "by-depth", keep = [[0.0, 1.0], [0.5, 0.5]]}'
    search = tuned(monkeypatch, tmp_path, "-s", f"skip={table}")
    assert "skip.keep" not in {one.key for one in search.space.dimensions}


@pytest.mark.slow
def test_a_search_that_is_interrupted_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned(monkeypatch, tmp_path)
    assert "0 settings tried, lost; --study FILE keeps them" in capsys.readouterr().err
    tuned(monkeypatch, tmp_path, "--study", str(tmp_path / "s.journal"))
    assert "s.journal: the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-loss", "1"], "--max-loss 1.0; write a share from 0 to below 1, such as 0.01"),
        (["--cost", "money"], "--cost money; write time or work"),
        (["--prompts", "none.txt"], "cannot read the prompts none.txt: No such file or directory"),
        (["--suite", "made-up"], "unknown suite 'made-up', and no such file of JSON lines; known: tiny"),
        (["--search", "importance.alpha"], "cannot search 'importance.alpha'"),
        (["--trials", "0"], "Invalid value for '--trials'"),
        (["--count", "-1"], "Invalid value for '--count'"),
        (["--minutes", "nan"], "--minutes nan; write a number from 0"),
        (["--gen-length", "0"], "gen_length"),
        (["--prompts", "none.txt", "--task", "sort"], "--prompts and --task: give one; prompts are of no suite"),
        (["--study", "t.toml", "--plot", "t.toml"], "t.toml is named twice among --out, --plot and --study"),
        (["-p", "vanilla", "--search", "importance.alpha=0,1"], "two contenders are named 'vanilla'"),
    ],
)
def test_wrong_input_of_the_command_is_an_error(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "-o", str(tmp_path / "t.toml"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
