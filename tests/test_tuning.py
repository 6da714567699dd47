"""Tuning: what is searched, what is chosen, what is kept of a search that was killed, what is written."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from helpers import EOS, offers
from hypothesis import given, settings
from hypothesis import strategies as st

from esdllm import Catalogue, ConfigError, DecodeConfig, InputError, Model, Problem, UnavailableError
from esdllm.cli import main
from esdllm.components import Components
from esdllm.config import merge, read_toml
from esdllm.evaluation import Contender
from esdllm.tuning import Dimension, Goal, Search, Space, Trial
from esdllm.tuning.plots import plot_tuning

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
    space = {one.key: one.tune for one in Space.of(config, catalogue, ["importance.alpha"], asked).dimensions}
    assert space["importance.alpha"] == (0.1, 0.2)
    assert space["importance.site"] == ("hidden", "key")
    assert space["block_length"] == (4, 8)
    first = Space.of(config, catalogue, searched=asked).settings(lambda name, values: values[0])
    assert first["block_length"] == 4
    assert first["importance"] == {"alpha": 0.1, "site": "hidden"}


@pytest.mark.parametrize("text", ["importance.alpha", "importance.alpha=1", "=1,2"])
def test_a_dimension_needs_a_key_and_two_values(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot search '.*'; write section\.option=value,value with two values"):
        Dimension.parse(text)


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


@settings(max_examples=60)
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
    assert [trial for trial, _ in told] == trials[1:]
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


def test_equal_seeds_try_equal_settings(search: Search) -> None:
    other, third = (make_search(search.model, search.catalogue, seed=seed) for seed in (0, 1))
    for one in (search, other, third):
        one.run(4)
    assert search.trials() == other.trials()
    assert search.trials() != third.trials()


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


def test_a_file_of_another_search_is_refused(search: Search, tmp_path: Path) -> None:
    search.open(tmp_path / "study.journal")
    other = make_search(search.model, search.catalogue, goal=Goal(max_loss=0.1), batch_size=3)
    with pytest.raises(
        ConfigError, match=r"study\.journal holds a search that differs in goal, batch_size; name another"
    ):
        other.open(tmp_path / "study.journal")


def test_no_time_is_no_trial(search: Search) -> None:
    search.run(5, seconds=0.0)
    assert len(search.trials()) == 1  # the base


def test_the_end_is_measured_on_other_problems_and_read_back_from_its_profile(search: Search, tmp_path: Path) -> None:
    search.run(3)
    tuning = search.finish()
    assert set(tuning.validation.problems) == set(search.test)
    assert [outcome.name for outcome in tuning.validation.outcomes] == ["vanilla", "es-dllm-parallel", "tuned"]
    assert tuning.config == search.configured(tuning.chosen.settings)
    assert tuning.holds == (tuning.loss.value <= 0.5)
    text = tuning.to_toml()
    assert text.startswith("# Tuned by esdllm for random on even: 3 settings tried, at most 50 % of quality to lose.\n")
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
        InputError, match=r"none of 1 settings is within 0 % of the reference: the least loss is \d+\.\d %"
    ):
        search.finish()


def test_agreement_with_itself_loses_nothing(search: Search) -> None:
    reference = search.reference_outcome()
    assert Goal(quality="agreement").loss(reference, reference) == (0.0, 0.0, 0.0)
    changed = attrs.evolve(reference, tokens=tuple((-1, *row[1:]) for row in reference.tokens))
    lost = Goal(quality="agreement").loss(changed, reference).value
    assert lost == pytest.approx(sum(1 / len(row) for row in reference.tokens) / len(reference.tokens))
    assert Goal(cost="work").cost_of(reference) == reference.layer_work
    assert Goal(cost="time").cost_of(reference) == reference.seconds


def test_tuning_without_optuna_says_what_to_install(search: Search, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UnavailableError, match=r"tuning needs optuna; pip install esdllm\[tune\]"):
        search.open()


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
    assert f"profile: {out}, plot: {plot}" in printed.err
    assert read_toml(out)["gen_length"] == 8
    assert "<svg" in plot.read_text()
    assert main([str(word) for word in [*words, "--json"]]) == 0
    printed = capsys.readouterr()
    assert "going on: 2 settings are tried already" in printed.err
    assert '"quality": "agreement"' in printed.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-loss", "1"], "--max-loss 1.0; write a share from 0 to below 1, such as 0.01"),
        (["--cost", "money"], "--cost money; write time or work"),
        (["--prompts", "none.txt"], "cannot read the prompts none.txt: No such file or directory"),
        (["--suite", "made-up"], "unknown suite 'made-up', and no such file of JSON lines; known: tiny"),
        (["--search", "importance.alpha"], "cannot search 'importance.alpha'"),
    ],
)
def test_wrong_input_of_the_command_is_an_error(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", "-o", str(tmp_path / "t.toml"), *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
