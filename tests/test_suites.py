"""Suites are read as written and contenders are what they are called; what is neither is named."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
from helpers import offers
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples

from esdllm import Catalogue, ConfigError, InputError, Problem, load_model
from esdllm.measure.evaluation import Contender, JsonlSuite, load_suite, of_split, taken

PROBLEMS = tuple(Problem(str(number), "", task) for number, task in enumerate("xxyyy"))


@attrs.frozen
class Even:
    """A suite without problems."""


def file_of(folder: Path, *lines: object) -> Path:
    path = folder / "problems.jsonl"
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines), encoding="utf-8")
    return path


# suites


@examples(30)
@given(st.lists(st.tuples(st.text().filter(str.strip), st.text(), st.text(), st.sampled_from(["tune", "test", ""]))))
def test_what_is_written_as_json_lines_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, ...]]
) -> None:
    written = [Problem(*row) for row in rows] or [Problem("p", "a")]
    for plain in (True, False):
        lines = [json.dumps(attrs.asdict(one), ensure_ascii=plain) for one in written]
        assert list(JsonlSuite(file_of(tmp_path_factory.getbasetemp(), *lines)).problems()) == written


def test_a_byte_order_mark_and_empty_lines_are_no_problems(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\r\n{"prompt": "p", "answer": "a"}\r\n\r\n')
    assert JsonlSuite(path).problems() == [Problem("p", "a")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 2: it is not JSON: "),
        ("[1]", r'line 2: it is no object; write {"prompt": "Sort 3 1 2.", "answer": "1 2 3"}'),
        ({"prompt": "p", "reply": "a"}, r"line 2 has no 'answer'; its keys are prompt, reply"),
        ({"prompt": 3, "answer": "a"}, r"line 2: 'prompt' is 3, where a text is needed"),
        ({"prompt": " ", "answer": "a"}, r"line 2: 'prompt' is ' '; give the model something to answer"),
        ({"prompt": "p", "answer": "a", "split": "dev"}, r"line 2: 'split' is 'dev'; write 'tune' or 'test'"),
    ],
)
def test_a_line_that_is_no_problem_is_named(tmp_path: Path, line: object, message: str) -> None:
    path = file_of(tmp_path, {"prompt": "p", "answer": "a"}, line)
    with pytest.raises(InputError, match=r"problems\.jsonl, " + message):
        JsonlSuite(path).problems()


def test_a_file_without_problems_or_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no problem; write one object per line, such as {"):
        JsonlSuite(file_of(tmp_path, "", " ")).problems()
    with pytest.raises(InputError, match=r"cannot read the problems .*none\.jsonl: No such file"):
        JsonlSuite(tmp_path / "none.jsonl").problems()
    (tmp_path / "latin").write_bytes(b"\xe9")
    with pytest.raises(InputError, match=r"latin, line 1: it is not valid UTF-8 at byte 0"):
        JsonlSuite(tmp_path / "latin").problems()


def test_a_file_s_answers_are_right_if_equal_but_for_white_space_around(tmp_path: Path) -> None:
    suite = JsonlSuite(tmp_path / "p.jsonl")
    assert suite.correct(Problem("p", " a b\n"), "\na b ")
    assert not suite.correct(Problem("p", "a b"), "a  b")
    assert not suite.settings


def test_a_suite_is_a_plugin_s_by_name_or_a_file_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = Catalogue.load({"mine": offers("esdllm_suites", {"even": Even, "a/b.jsonl": Even})})
    file_of(tmp_path, {"prompt": "p", "answer": "a"}).rename(tmp_path / "plain")
    monkeypatch.chdir(tmp_path)
    assert load_suite("even", catalogue) == load_suite("a/b.jsonl", catalogue) == Even()
    assert load_suite("plain", catalogue).problems() == [Problem("p", "a")]
    assert load_suite("some/file", catalogue) == JsonlSuite("some/file")
    with pytest.raises(
        ConfigError, match=r"unknown suite 'evn', and no such file of JSON lines; did you mean 'even'\?"
    ):
        load_suite("evn", catalogue)


def test_a_split_is_what_says_so_and_test_is_all_where_nothing_does() -> None:
    unsaid = [Problem("a", ""), Problem("b", "")]
    said = [Problem("a", "", split="tune"), Problem("b", "", split="test"), Problem("c", "")]
    assert of_split(unsaid, "test") == of_split(unsaid, "all") == unsaid
    assert [of_split(said, split) for split in ("tune", "test", "all")] == [said[:1], said[1:2], said]
    with pytest.raises(InputError, match=r"no problem is of the split 'tune'; write \"split\": \"tune\""):
        of_split(unsaid, "tune")


@given(st.lists(st.sampled_from("xyz"), min_size=1), st.integers(1, 4), st.sets(st.sampled_from("xyz")))
def test_taken_are_the_first_of_each_task(tasks: list[str], count: int, wanted: set[str]) -> None:
    problems = [Problem(str(number), "", task) for number, task in enumerate(tasks)]
    wanted &= set(tasks)
    found = taken(problems, count, sorted(wanted))
    for task in wanted or set(tasks):
        assert [one for one in found if one.task == task] == [one for one in problems if one.task == task][:count]
    assert found == [one for one in problems if one in found]
    assert {one.task for one in found} == (wanted or set(tasks))
    assert taken(problems, None) == problems


def test_a_task_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"no problem is of the task 'z'; known: x, y"):
        taken(PROBLEMS, None, ["z"])


def test_the_shipped_suite_has_answers_that_fit_and_splits_that_share_no_prompt(catalogue: Catalogue) -> None:
    suite, codec = load_suite("tiny", catalogue), load_model("tiny-llada", "cpu", catalogue=catalogue).codec
    problems, room = suite.problems(), suite.settings["gen_length"]
    assert codec is not None
    assert not [one.answer for one in problems if len(codec.encode(one.answer)) >= room]
    tune, test = ({one.prompt for one in of_split(problems, split)} for split in ("tune", "test"))
    assert tune
    assert test
    assert not tune & test
    assert all(suite.correct(one, f" {one.answer}\n") and not suite.correct(one, one.answer + "x") for one in problems)


# contenders


def test_a_contender_is_a_preset_under_settings_under_sets_under_its_own(catalogue: Catalogue) -> None:
    suggested = {"gen_length": 32, "block_length": 16, "seed": 3}
    found = Contender.of(
        "es-dllm  block_length=8 importance.alpha=0.7", catalogue, suggested, ["seed=5", "block_length=4"]
    )
    assert found.name == "es-dllm block_length=8 importance.alpha=0.7"
    assert found.config == catalogue.configure(
        "es-dllm", sets=["gen_length=32", "block_length=8", "seed=5", "importance.alpha=0.7"]
    )


def test_a_published_preset_keeps_what_the_suite_does_not_set(catalogue: Catalogue) -> None:
    name = "es-dllm/llada-instruct/gsm8k"
    found, published = Contender.of(name, catalogue, {"gen_length": 32}).config, catalogue.configure(name)
    assert found.gen_length == 32
    assert attrs.evolve(found, gen_length=published.gen_length) == published
    assert Contender.of(name, catalogue).config == published


def test_a_file_goes_over_the_suite_and_under_the_sets(catalogue: Catalogue, tmp_path: Path) -> None:
    path = tmp_path / "my own.toml"
    path.write_text('preset = "dual-cache"\nseed = 7\nblock_length = 8\n[sampler]\ntemperature = 0.5\n')
    suggested = {"block_length": 16, "gen_length": 32, "sampler": {"top_k": 3}}
    found = Contender.of(f"{path} seed=9", catalogue, suggested, ["seed=8"])
    expected = ["seed=9", "block_length=8", "gen_length=32", "sampler.temperature=0.5", "sampler.top_k=3"]
    assert found.name == "my own seed=9"
    assert found.config == catalogue.configure("dual-cache", sets=expected)


def test_a_complete_file_needs_no_preset_and_one_without_sections_has_the_default(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    whole, part = tmp_path / "whole.toml", tmp_path / "part.toml"
    whole.write_text(catalogue.configure("vanilla", sets=["gen_length=16"]).to_toml())
    part.write_text("gen_length = 16")
    assert Contender.of(str(whole), catalogue, {"gen_length": 32}).config == catalogue.configure(
        "vanilla", sets=["gen_length=16"]
    )
    assert Contender.of(str(part), catalogue).config == catalogue.configure("es-dllm", sets=["gen_length=16"])


def test_a_value_may_hold_white_space(catalogue: Catalogue) -> None:
    text = 'es-dllm importance={name = "random", raised = false} skip={name="by-depth", keep=[[0.0, 1.0], [0.5, 0.5]]}'
    found = Contender.of(text, catalogue).config
    assert found.importance.options == {"raised": False}
    assert found.skip.options == {"keep": [[0.0, 1.0], [0.5, 0.5]]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" ", r"a contender has no name; give a preset or a TOML file"),
        ("es-dlm", r"unknown preset 'es-dlm'; did you mean 'es-dllm'\?"),
        ("es-dllm alpha", r"unknown preset 'es-dllm alpha'; did you mean"),
        ("es-dllm alpha=1", r"unknown setting 'alpha'"),
        ("es-dllm gen_length=0", r"gen_length"),
        ("none.toml", r"cannot read the configuration none\.toml"),
        (
            "vanilla preset=es-dllm",
            r"'preset=es-dllm' where contenders are compared; a contender's preset is its first word",
        ),
    ],
)
def test_a_contender_that_is_none_is_refused(catalogue: Catalogue, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Contender.of(text, catalogue)
