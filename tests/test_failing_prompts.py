"""A prompt whose decoding fails spoils no answer but its own, in a batch, in another process and after a kill."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from esdllm import Catalogue, Engine, load_model
from esdllm.cli import main
from esdllm.errors import ConfigError, EsdllmError, NumericsError, PluginError, TokenizerError, UnavailableError
from esdllm.use.batching import BatchRun, Setup, workers

POISON = " ~"
GOOD = ["Who are you?", "What is 12 + 7?", "Sort these numbers: 31, 4, 15.", "What is 3 + 4?"]
BAD = f"What is {POISON.strip()} ?"
SETTINGS = ["--gen-length", "16", "--block-length", "8", "--dtype", "float32", "--device", "cpu"]
Run = Callable[..., tuple[int, str, str]]


POISONING = f"""
import esdllm.use.batching.workers as workers

plain = workers.load_model

def load_model(*words, **rest):
    model = plain(*words, **rest)
    if model.adapter.device.type != "meta":
        model.adapter.embedding[model.codec.encode({POISON!r})[-1]] = float("nan")
    return model

workers.load_model = load_model
"""
"""A module after which runs load a model with a token whose embedding is none."""


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a model that runs load with a token whose embedding is none."""
    monkeypatch.setattr(workers, "load_model", workers.load_model)  # what is put there goes at the end
    exec(POISONING, {})
    codec = load_model("tiny-llada", "cpu").codec
    assert codec is not None
    token = codec.encode(POISON)[-1]
    assert token in codec.encode(BAD)
    assert not any(token in codec.encode(text) for text in GOOD)
    return "tiny-llada"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Answer prompts.jsonl into answers.jsonl; give the exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def command(model: str, *words: str) -> tuple[int, str, str]:
        options = ["generate", "--input", "prompts.jsonl", "--output", "answers.jsonl", "--model", str(model)]
        code = main([*options, *SETTINGS, *words])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return command


def write(prompts: Sequence[str]) -> None:
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


def answers() -> dict[int, str]:
    rows = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert all("error" not in row for row in rows)
    return {row["line"]: row["text"] for row in rows}


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "place"), [("8", 2), ("2", 0), ("1", 4)])
def test_the_prompt_that_fails_is_a_bad_line_and_the_others_have_their_answers(
    run: Run, poisoned: str, batch: str, place: int
) -> None:
    prompts = [*GOOD[:place], BAD, *GOOD[place:]]
    write(prompts)
    code, out, err = run(poisoned, "--batch", batch, "--preset", "vanilla", "--json")
    assert code == 1, err
    pipe = Engine.build(
        load_model("tiny-llada", "cpu", "float32"),
        Catalogue.load().configure("vanilla", settings={"gen_length": 16, "block_length": 8}),
    )
    assert answers() == {
        number: pipe.generate(prompt, chat=True).text[0] for number, prompt in enumerate(prompts, 1) if prompt != BAD
    }
    assert f"prompts.jsonl, line {place + 1}: NaN logits at step 0; the embedding is the first" in err
    assert "4 prompts answered: 4 now" in err
    assert ", 1 bad line: answers.jsonl" in err
    assert [line["number"] for line in json.loads(out)["bad"]] == [place + 1]


@pytest.mark.slow
def test_in_another_process_too(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "poisoning-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: poisoning\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[esdllm]\npoisoning = poisoning\n")
    (tmp_path / "poisoning.py").write_text(
        f"import multiprocessing\nif multiprocessing.parent_process():\n    exec({POISONING!r})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    write([GOOD[0], BAD, GOOD[1]])
    code, _, err = run("tiny-llada", "--jobs", "2", "--batch", "2")
    assert code == 1
    assert "prompts.jsonl, line 2: NaN logits at step 0" in err
    assert sorted(answers()) == [1, 3]


@pytest.mark.slow
def test_a_finished_run_tells_the_prompts_that_failed_again_and_does_not_decode_them(run: Run, poisoned: str) -> None:
    write([GOOD[0], BAD, "", GOOD[1]])
    first = run(poisoned)
    held = Path("answers.jsonl").read_bytes()
    again = run(poisoned)
    assert (first[0], again[0]) == (1, 1)
    assert "line 2: NaN logits" in again[2]
    assert "line 3: the prompt is empty" in again[2]
    assert "all 2 prompts answered before, 2 bad lines" in again[2]
    assert Path("answers.jsonl").read_bytes() == held
    finished = json.loads(Path("answers.jsonl.run/run.json").read_text())["finished"]
    assert (finished["prompts"], finished["bad_lines"]) == (2, [2, 3])
    [failed] = finished["failed"]
    assert failed["line"] == 2
    assert failed["error"].startswith("NaN logits")


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_past_the_prompt_that_fails(run: Run, poisoned: str) -> None:
    write([BAD, *GOOD, BAD])
    setup = Setup(
        str(poisoned),
        Catalogue.load().configure("vanilla", settings={"gen_length": 16, "block_length": 8}).to_dict(),
        "cpu",
    )

    class KilledError(Exception):
        pass

    def die(progress: Any) -> None:
        if progress.prompts >= 2:
            raise KilledError

    batches = BatchRun(Path("prompts.jsonl"), Path("answers.jsonl"), setup, batch=2)
    with pytest.raises(KilledError):
        batches(Catalogue.load(), watch=die)
    result = batches(Catalogue.load())
    assert [line.number for line in result.bad] == [1, 6]
    assert result.prompts == 4
    whole = answers()
    undisturbed = BatchRun(Path("prompts.jsonl"), Path("again.jsonl"), setup, batch=2)(Catalogue.load())
    assert undisturbed.bad == result.bad
    assert sorted(whole) == [2, 3, 4, 5]
    assert Path("again.jsonl").read_bytes() == Path("answers.jsonl").read_bytes()
    assert result.before + 2 * result.batches >= 4
    assert undisturbed.before == 0


@pytest.mark.slow
def test_a_file_of_nothing_but_failing_prompts_ends(run: Run, poisoned: str) -> None:
    write([BAD, BAD, BAD])
    code, _, err = run(poisoned)
    assert code == 1, err
    assert "3 bad lines" in err
    assert answers() == {}
    assert run(poisoned)[0] == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", [NumericsError, ConfigError, PluginError, TokenizerError, EsdllmError])
def test_any_error_of_one_prompt_is_its_line_s(
    run: Run, monkeypatch: pytest.MonkeyPatch, kind: type[EsdllmError]
) -> None:
    ordinary = Engine.generate

    def generate(self: Engine, prompts: list[list[int]], **rest: Any) -> Any:
        if any(self.model.codec.decode(prompt).find("12 + 7") >= 0 for prompt in prompts):  # type: ignore[union-attr]
            raise kind("prompt 0 is unlucky")
        return ordinary(self, prompts, **rest)

    monkeypatch.setattr(Engine, "generate", generate)
    write(GOOD)
    code, _, err = run("tiny-llada")
    assert code == 1, err
    assert "prompts.jsonl, line 2: the prompt is unlucky" in err
    assert sorted(answers()) == [1, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("error", [UnavailableError("the device is gone"), torch.OutOfMemoryError("all is taken")])
def test_what_is_the_machine_s_fault_stops_the_run_and_is_no_line_s(
    run: Run, monkeypatch: pytest.MonkeyPatch, error
) -> None:
    def generate(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "generate", generate)
        write(GOOD)
        assert run("tiny-llada")[0] == 2
    assert not Path("answers.jsonl").exists()
    assert run("tiny-llada")[0] == 0
    assert sorted(answers()) == [1, 2, 3, 4]
