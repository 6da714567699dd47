"""The laws of a file of prompts: each has its answer, a killed run goes on, a bad line is told and the rest is done."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from rich.console import Console

from esdllm import Catalogue, Engine, configure, load_model
from esdllm.cli import main
from esdllm.errors import InputError, UnavailableError
from esdllm.use.batching import BatchRun, Progress, Setup, alike
from esdllm.use.batching.journal import Journal
from esdllm.use.batching.locking import locked
from esdllm.use.batching.rows import read_lines
from esdllm.use.batching.workers import places

pytestmark = pytest.mark.covers

ASKED = ["Who are you?", "What is 12 + 7?", "Sort these numbers from small to large: 31, 4, 15."]
MODEL = "./small"
SHORT = ["--model", MODEL, "--gen-length", "16", "--block-length", "8"]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: dict[str, Path]
) -> Run:
    """Answer prompts.jsonl into a file; give the exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    Path(MODEL).symlink_to(small["tiny-llada"])

    def command(output: str = "answers.jsonl", *words: str, source: str = "prompts.jsonl") -> tuple[int, str, str]:
        code = main(["generate", "--input", source, "--output", output, *SHORT, *words])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return command


def write_prompts(count: int = 7, path: str = "prompts.jsonl") -> None:
    lines = [json.dumps({"id": f"q{i}", "prompt": ASKED[i % 3]}) for i in range(count)]
    Path(path).write_text("\n".join(lines) + "\n")


def read(path: str = "answers.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.mark.slow
def test_every_prompt_has_the_engine_s_answer_in_the_order_of_the_input(run: Run) -> None:
    write_prompts(5)
    assert run("answers.jsonl", "--batch", "1")[0] == 0
    config = configure("es-dllm", settings={"gen_length": 16, "block_length": 8})
    engine = Engine.build(load_model(MODEL, "cpu"), config)
    for i, row in enumerate(read()):
        expected = engine.generate(ASKED[i % 3], chat=True)
        assert expected.text is not None
        assert row == {
            "line": i + 1,
            "id": f"q{i}",
            "prompt": ASKED[i % 3],
            "text": expected.text[0],
            "tokens": len(expected.answers[0]),
            "forwards": expected.forwards,
        }


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_batches_are_of_like_length_and_hold_every_prompt_once(batch: int) -> None:
    lengths = [5, 9, 1, 9, 3, 7, 5]
    groups = alike(lengths, batch)
    assert sorted(i for rows in groups for i in rows) == list(range(len(lengths)))
    assert all(len(rows) <= batch for rows in groups)
    shortest = [min(lengths[i] for i in rows) for rows in groups]
    longest = [max(lengths[i] for i in rows) for rows in groups]
    assert all(a >= b for a, b in zip(shortest, longest[1:], strict=False))


# going on


class KilledError(Exception):
    """Ends a run between two batches."""


def dying(after: int) -> Callable[[Progress], None]:
    told: list[Progress] = []

    def watch(progress: Progress) -> None:
        told.append(progress)
        if len(told) > after:
            raise KilledError

    return watch


@pytest.mark.slow
def test_a_killed_run_goes_on_and_makes_the_file_of_an_undisturbed_one(run: Run, tmp_path: Path) -> None:
    write_prompts(12)
    words = [*SHORT, "--batch", "2"]
    code = f"from esdllm.cli import main; main({['generate', '-i', 'prompts.jsonl', '-o', 'killed.jsonl', *words]!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.DEVNULL)
    folder, deadline = tmp_path / "killed.jsonl.run", time.monotonic() + 120
    while len(list(folder.glob("batch-*.jsonl"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = {file.name: file.stat().st_mtime_ns for file in folder.glob("batch-*.jsonl")}
    assert 2 <= len(done) < 6
    assert not (tmp_path / "killed.jsonl").exists()

    told = json.loads(run("killed.jsonl", "--batch", "2", "--json")[1])
    assert (told["prompts"], told["before"], told["batches"]) == (12, 2 * len(done), 6 - len(done))
    assert run("whole.jsonl", "--batch", "2")[0] == 0
    assert Path("killed.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_what_is_done_is_not_done_again(run: Run, catalogue: Catalogue) -> None:
    write_prompts(6)
    config = configure("es-dllm", settings={"gen_length": 16, "block_length": 8})
    setup = Setup(MODEL, config.to_dict(), "cpu")
    job = BatchRun(Path("prompts.jsonl"), Path("answers.jsonl"), setup, batch=2)
    with pytest.raises(KilledError):
        job(catalogue, watch=dying(2))
    first = Path("answers.jsonl.run/batch-00000.jsonl")
    changed = [{**row, "text": "kept"} for row in read(str(first))]
    first.write_text("".join(json.dumps(row) + "\n" for row in changed))
    told: list[Progress] = []
    result = job(catalogue, watch=told.append)
    assert (result.prompts, result.before, result.batches) == (6, 4, 1)
    assert [progress.prompts for progress in told] == [4, 6]
    assert told[-1].share == 1.0
    assert sum(row["text"] == "kept" for row in read()) == 2


def test_a_finished_run_is_not_made_again(run: Run) -> None:
    write_prompts(3)
    run()
    before = Path("answers.jsonl").stat().st_mtime_ns
    assert os.listdir("answers.jsonl.run") == ["run.json"]
    code, _, err = run()
    assert code == 0
    assert err.splitlines()[-1] == "all 3 prompts answered before: answers.jsonl"
    assert Path("answers.jsonl").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_run_goes_on_with_another_batch_and_another_device_keeping_what_is_done(
    run: Run, catalogue: Catalogue, batch: int
) -> None:
    write_prompts(9)
    config = configure("vanilla", settings={"gen_length": 16, "block_length": 8})
    setup = Setup(MODEL, config.to_dict(), "cpu")
    whole = BatchRun(Path("prompts.jsonl"), Path("whole.jsonl"), setup, batch=3)
    whole(catalogue)
    job = attrs.evolve(whole, output=Path("answers.jsonl"))
    with pytest.raises(KilledError):
        job(catalogue, watch=dying(2))
    done = {file: file.read_bytes() for file in Path("answers.jsonl.run").glob("batch-*.jsonl")}
    told: list[Progress] = []
    other = attrs.evolve(job, batch=batch, setup=attrs.evolve(setup, device=None))
    with pytest.raises(KilledError):
        other(catalogue, watch=lambda progress: (told.append(progress), dying(0)(progress) if told[1:] else None))
    assert all(file.read_bytes() == content for file, content in done.items())
    result = job(catalogue, watch=told.append)
    assert [progress.prompts for progress in told[:3]] == [6, 6 + min(3, batch), 6 + min(3, batch)]
    assert (result.prompts, result.before) == (9, 6 + min(3, batch))
    assert [row["text"] for row in read()] == [row["text"] for row in read("whole.jsonl")]
    sizes = json.loads(Path("answers.jsonl.run/run.json").read_text())["finished"]["batches"]
    assert sum(int(size) * count for size, count in sizes.items()) == 9


def test_what_memory_does_not_hold_is_done_with_a_smaller_batch(
    run: Run, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    write_prompts(5)
    generate, asked = Engine.generate, []

    def cramped(engine: Engine, prompts: Any, **options: Any) -> Any:
        asked.append(len(prompts))
        if len(asked) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return generate(engine, prompts, **options)

    monkeypatch.setattr(Engine, "generate", cramped)
    code, _, err = run("answers.jsonl", "--batch", "2")
    assert code == 2
    assert "2 prompts of up to" in err
    assert "do not fit into memory; give a smaller --batch" in err
    code, _, err = run("answers.jsonl", "--batch", "1")
    assert code == 0
    assert asked == [2, 2, 1, 1, 1]
    assert "5 prompts answered, 2 of them before: 3 now in 3 batches" in err


def test_the_chat_template_that_is_taken_anyway_is_no_other_setting(run: Run) -> None:
    write_prompts(1)
    run()
    assert run("answers.jsonl", "--chat")[0] == 0
    assert "other settings: chat was true, is false. Give" in run("answers.jsonl", "--no-chat")[2]


def test_other_settings_are_refused_with_what_differs_and_restart_begins_anew(run: Run) -> None:
    write_prompts(3)
    run()
    code, _, err = run("answers.jsonl", "--batch", "2", "--set", "importance.alpha=0.7")
    assert code == 2
    assert "answers.jsonl.run is of a run with other settings: config.importance" in err
    assert "alpha" in err
    assert "give --restart to begin again" in err
    write_prompts(2)
    assert "other settings: input has changed. Give" in run()[2]
    assert run("answers.jsonl", "--restart")[0] == 0
    assert len(read()) == 2


def test_a_file_that_no_run_made_is_not_overwritten(run: Run) -> None:
    write_prompts(1)
    Path("answers.jsonl").write_text("mine")
    code, _, err = run()
    assert code == 2
    assert "answers.jsonl is there already; name another --output, or give --restart to replace it" in err
    assert Path("answers.jsonl").read_text() == "mine"


def test_a_damaged_run_says_so(run: Run) -> None:
    write_prompts(1)
    run()
    Path("answers.jsonl.run/run.json").write_text("{")
    assert "run.json is damaged" in run()[2]
    Path("answers.jsonl.run/run.json").write_text("[]")
    assert "run.json is of no run" in run()[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"line": 1}\n{"line": ', "batch-00000.jsonl, line 2: it is not JSON"),
        ('{"text": "a"}\n', "batch-00000.jsonl, line 1 is damaged; remove the file to have its prompts answered again"),
    ],
)
def test_a_damaged_batch_says_so(run: Run, catalogue: Catalogue, content: str, message: str) -> None:
    write_prompts(2)
    config = configure("es-dllm", settings={"gen_length": 16, "block_length": 8})
    job = BatchRun(Path("prompts.jsonl"), Path("answers.jsonl"), Setup(MODEL, config.to_dict(), "cpu"), batch=1)
    with pytest.raises(KilledError):
        job(catalogue, watch=dying(1))
    Path("answers.jsonl.run/batch-00000.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        job(catalogue)


def test_an_interrupt_says_how_far_it_came(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from esdllm.cli import batch

    class Interrupted(batch._Bar):
        def show(self, step: Progress) -> None:
            super().show(step)
            if step.prompts == 2:
                raise KeyboardInterrupt

    write_prompts(6)
    monkeypatch.setattr(batch, "_Bar", Interrupted)
    code, _, err = run("answers.jsonl", "--batch", "2")
    assert code == 130
    assert err.splitlines()[-1] == "stopped: 2 of 6 prompts answered; the same command goes on from there"
    monkeypatch.undo()


# several processes


@pytest.mark.slow
def test_several_processes_make_the_file_of_one(run: Run) -> None:
    write_prompts(6)
    assert run("one.jsonl", "--batch", "2")[0] == 0
    code, _, err = run("two.jsonl", "--batch", "2", "--jobs", "2", "--device", "cpu")
    assert code == 0, err
    assert Path("one.jsonl").read_bytes() == Path("two.jsonl").read_bytes()


@pytest.mark.slow
def test_an_error_in_a_process_is_the_command_s(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_prompts(2)
    words = ("--set", "attention.name=xformers", "--jobs", "2", "--device", "cpu")
    code, _, err = run("answers.jsonl", *words)
    assert code == 2
    assert "xformers" in err
    assert not Path("answers.jsonl").exists()
    assert run("answers.jsonl")[0] == 0  # nothing was done yet, so nothing is held to those settings


def test_an_output_that_cannot_be_written_says_so(run: Run) -> None:
    write_prompts(1)
    Path("file").write_text("")
    assert "cannot write file/answers.jsonl.run: Not a directory; name another --output" in run("file/answers.jsonl")[2]


def test_processes_share_the_threads_and_take_a_device_each(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    setup = Setup("tiny-llada", {}, "cpu")
    threads = torch.get_num_threads()
    assert [place.threads for place in places(setup, 2)] == [max(1, threads // 2)] * 2
    with pytest.raises(UnavailableError, match="several processes take a device each; give --device cuda"):
        places(Setup("tiny-llada", {}, "cuda:1"), 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [place.device for place in places(Setup("tiny-llada", {}, "cuda"), 2)] == ["cuda:0", "cuda:1"]
    with pytest.raises(UnavailableError, match="this machine has 2 GPUs; give --jobs 2"):
        places(Setup("tiny-llada", {}, "cuda"), 3)


# bad lines


def test_a_bad_line_is_told_with_its_number_and_the_rest_is_done(run: Run) -> None:
    lines = [
        '{"prompt": "Who are you?"}',
        "not json",
        "",
        '{"prompt": ""}',
        '{"text": "Who are you?"}',
        '["Who are you?"]',
        json.dumps({"prompt": "word " * 2000}),
        json.dumps({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}),
        json.dumps({"messages": [{"role": "user", "content": "Who are you?"}]}),
        '{"prompt": "\\ud800"}',
    ]
    Path("prompts.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"prompt": "\xff"}\n')
    code, out, err = run("answers.jsonl", "--json")
    assert code == 1
    assert [row["line"] for row in read()] == [1, 9]
    assert read()[0]["text"] == read()[1]["text"]
    for said in (
        "prompts.jsonl, line 2: it is not JSON: Expecting value",
        "prompts.jsonl, line 4: the prompt is empty; give it at least one token",
        'prompts.jsonl, line 5: it holds no prompt: write {"prompt": "Who are you?"}, or messages',
        'prompts.jsonl, line 6: it is no object; write {"prompt": "Who are you?"}',
        "exceed the model's context of 1024; shorten the prompt or gen_length",
        "prompts.jsonl, line 8: it has both a prompt and messages; give one",
        "prompts.jsonl, line 10: the prompt is not valid UTF-8 at character 0",
        "prompts.jsonl, line 11: it is not valid UTF-8 at byte 12",
        "2 prompts answered: 2 now in 1 batch",
        ", 8 bad lines: answers.jsonl",
    ):
        assert said in err
    assert [line["number"] for line in json.loads(out)["bad"]] == [2, 4, 5, 6, 7, 8, 10, 11]
    assert run()[0] == 1  # the exit code of a finished run is the same


def test_only_the_first_bad_lines_are_printed(run: Run) -> None:
    Path("prompts.jsonl").write_text("no\n" * 12)
    code, _, err = run()
    assert code == 1
    assert "and 2 more bad lines" in err
    assert read() == []


# kinds of file


def test_csv_goes_in_and_out(run: Run) -> None:
    with open("prompts.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["id", "prompt"], ["a", ASKED[0]], ["b", "two\nlines, and a comma"], ["c", ASKED[1]]])
    assert run("answers.csv", source="prompts.csv")[0] == 0
    with open("answers.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["line"], row["id"], row["prompt"]) for row in rows] == [
        ("2", "a", ASKED[0]),
        ("3", "b", "two\nlines, and a comma"),
        ("5", "c", ASKED[1]),
    ]
    assert run("answers.jsonl", source="prompts.csv")[0] == 0
    assert [row["text"] for row in read()] == [row["text"] for row in rows]


def test_a_csv_line_with_too_many_or_too_few_fields_is_bad(tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text("id,prompt\na,Hello\nb\nc,Hello,again\n")
    good, bad = read_lines(tmp_path / "prompts.csv")
    assert [line.number for line in good] == [2]
    assert [(line.number, line.reason.split(":")[0]) for line in bad] == [
        (3, "it holds no prompt"),
        (4, "it has more fields than the head"),
    ]


def test_parquet_goes_in_and_out(run: Run) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"id": [7, 8, 9], "prompt": [ASKED[0], None, ASKED[1]]})
    parquet.write_table(table, "prompts.parquet")
    code, _, err = run("answers.parquet", source="prompts.parquet")
    assert code == 1
    assert "prompts.parquet, line 2: it holds no prompt" in err
    rows = parquet.read_table("answers.parquet").to_pylist()
    assert [(row["line"], row["id"], row["prompt"]) for row in rows] == [(1, 7, ASKED[0]), (3, 9, ASKED[1])]
    assert all(row["text"] and row["tokens"] > 0 for row in rows)


def test_parquet_without_pyarrow_names_the_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_prompts(1)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, _, err = run("answers.parquet")
    assert code == 2
    assert 'Parquet files need pyarrow: pip install "esdllm[parquet]"' in err


def test_ids_of_several_types_become_text_in_parquet(run: Run) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    Path("prompts.jsonl").write_text(
        '{"id": 1, "prompt": "Hi"}\n{"id": "a", "prompt": "Hi"}\n{"id": [2], "prompt": "Hi"}\n{"prompt": "Hi"}\n'
    )
    assert run("answers.parquet")[0] == 0
    assert parquet.read_table("answers.parquet")["id"].to_pylist() == ["1", '"a"', "[2]", None]


# wrong words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input", "prompts.jsonl"], "--input alone; give both --input FILE and --output FILE"),
        (["--output", "a.jsonl"], "--output alone; give both"),
        (["--ray"], "--ray alone; give both"),
        (["--ray", "127.0.0.1:6379", "--input", "prompts.jsonl"], "--input and --ray alone; give both"),
        (["Hello", "--input", "prompts.jsonl", "--output", "a.jsonl"], "--input and a prompt: give one"),
        (["-i", "prompts.jsonl", "-o", "a.jsonl", "--watch"], "--input and --watch: give one"),
        (
            ["-i", "prompts.md", "-o", "a.jsonl"],
            "prompts.md: files named *.md are not known; name a .csv, .jsonl, .parquet, .txt",
        ),
        (["-i", "prompts.jsonl", "-o", "a.txt"], "a.txt: files named *.txt are not known"),
        (["-i", "missing.jsonl", "-o", "a.jsonl"], "cannot read the prompts missing.jsonl: No such file"),
        (["-i", "prompts.jsonl", "-o", "prompts.jsonl"], "prompts.jsonl is the input too; name another --output"),
        (["-i", "headless.csv", "-o", "a.csv"], "headless.csv has no column 'prompt'; it has ['question']"),
        (["-i", "prompts.jsonl", "-o", "a.jsonl", "--device", "meta"], "the device 'meta' computes no values"),
        ([], "there is no PROMPT; give one in quotes"),
    ],
)
def test_wrong_words_are_one_line(run: Run, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_prompts(1)
    Path("headless.csv").write_text("question\nWho?\n")
    assert main(["generate", *words, "--model", MODEL]) == 2
    assert message in capsys.readouterr().err
    assert not Path("a.jsonl.run").exists()


def test_a_file_that_is_no_parquet_says_so(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "prompts.parquet").write_text("text")
    with pytest.raises(InputError, match="is no Parquet file"):
        read_lines(tmp_path / "prompts.parquet")


# progress


def shown(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is shown of a run of which a quarter was done before, and half is done now."""
    from esdllm.cli import batch

    monkeypatch.setattr(batch.Pace, "seconds", 0.0)
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with batch._Bar(console) as bar:
        bar.show(Progress(1, 4, 0.25))
        time.sleep(0.05)
        bar.show(Progress(2, 4, 0.5))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_progress_is_a_bar_on_a_terminal_and_lines_with_an_estimate_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(False, monkeypatch).splitlines() == [
        "1 of 4 prompts answered",
        "2 of 4 prompts answered, about 0 s left",
    ]
    assert "2 of 4 prompts" in shown(True, monkeypatch)
    assert "50%" in shown(True, monkeypatch)


def test_the_estimate_goes_by_what_this_process_did(monkeypatch: pytest.MonkeyPatch) -> None:
    from esdllm.cli import progress

    monkeypatch.setattr(progress.time, "monotonic", lambda: 400.0)
    assert progress.left(100.0, 0.25, 0.25) == ""
    assert (
        progress.left(100.0, 0.25, 0.5) == ", about 10 min left"
    )  # 300 s for a quarter of the work, half of which is left


# two runs on one output


def in_a_process(*words: str) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "esdllm",
        "generate",
        "--input",
        "prompts.jsonl",
        "--output",
        "answers.jsonl",
        *SHORT,
    ]
    return subprocess.Popen([*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


HOLDING = """
import sys, time
from pathlib import Path
from esdllm.use.batching.locking import locked
with locked(Path("answers.jsonl.run"), Path("answers.jsonl")):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds answers.jsonl."""
    other = subprocess.Popen([sys.executable, "-c", HOLDING], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    yield other
    other.kill()
    other.wait()
    other.stdout.close()


@pytest.mark.slow
def test_of_two_runs_on_one_output_one_is_told_who_holds_it(run: Run) -> None:
    write_prompts(6)
    both = [in_a_process("--batch", "1") for _ in range(2)]
    told = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) in (
        [0, 0],
        [0, 2],
    )  # the second may come after the first's end
    for process, text in zip(both, told, strict=True):
        if process.returncode:
            other = both[1 - both.index(process)].pid
            assert re.search(rf"process {other} on \S+ is writing answers\.jsonl; wait for it, or name another", text)
    assert [row["line"] for row in read()] == list(range(1, 7))
    assert not list(Path().glob("*.lock"))


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--restart",), ("--jobs", "2")])
def test_who_finds_an_output_held_leaves_everything_as_it_is(
    run: Run, holder: subprocess.Popen[str], words: tuple[str, ...]
) -> None:
    write_prompts(2)
    Path("answers.jsonl").write_text("kept")
    code, _, err = run("answers.jsonl", *words)
    assert code == 2
    assert re.search(rf"process {holder.pid} on \S+ is writing answers\.jsonl", err)
    assert Path("answers.jsonl").read_text() == "kept"
    assert not Path("answers.jsonl.run").exists()
    assert run("other.jsonl")[0] == 0


@pytest.mark.slow
def test_who_is_killed_holds_nothing(run: Run, holder: subprocess.Popen[str]) -> None:
    write_prompts(1)
    holder.kill()
    holder.wait()
    assert Path("answers.jsonl.run.lock").exists()
    assert run()[0] == 0
    assert not Path("answers.jsonl.run.lock").exists()


def test_threads_of_one_process_are_kept_apart_too(tmp_path: Path) -> None:
    folder, output = tmp_path / "a.jsonl.run", tmp_path / "a.jsonl"
    with locked(folder, output):
        with (
            pytest.raises(UnavailableError, match=rf"process {os.getpid()} on \S+ is writing .*a\.jsonl"),
            locked(folder, output),
        ):
            pass
        with locked(tmp_path / "b.jsonl.run", tmp_path / "b.jsonl"):
            pass
    with locked(folder, output):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lost", [True, False])
def test_a_file_with_an_answer_too_few_or_too_many_is_not_published(
    run: Run, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    write_prompts(3)
    rows = Journal.rows

    def altered(journal: Journal) -> list[dict[str, Any]]:
        found = rows(journal)
        return (
            (found[:-1] if lost else sorted([*found, *found[-1:]], key=lambda row: int(row["line"])))
            if found
            else found
        )

    monkeypatch.setattr(Journal, "rows", altered)
    code, _, err = run()
    assert code == 2
    assert "the answers of 1 lines, the first of them line 3, are missing from answers.jsonl.run or there twice" in err
    assert not Path("answers.jsonl").exists()


@pytest.mark.parametrize(
    "words", [["--ray"], ["--ray", "--json"], ["--ray", "127.0.0.1:6379"], ["--ray=127.0.0.1:6379"]]
)
def test_a_cluster_needs_its_extra_whether_or_not_its_address_is_given(
    run: Run, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_prompts(1)
    for name in [name for name in sys.modules if name.startswith("esdllm.serving.ray")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, told = run("answers.jsonl", *words)
    assert code == 2
    assert '--ray needs ray: pip install "esdllm[ray]"' in told
    assert not Path("answers.jsonl.run").exists()
