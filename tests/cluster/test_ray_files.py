"""The laws of a file that a cluster answers: the answers are those of this machine, whoever is killed, each row once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("ray", reason='needs ray: pip install "esdllm[ray]"')

from esdllm import Engine, configure, load_model
from esdllm.cli import main
from esdllm.errors import EsdllmError, UnavailableError
from esdllm.serving.ray import Decoder
from esdllm.serving.ray.cluster import Share, joined, shares
from esdllm.serving.ray.files import _Attempts, _sound, _TellingDecoder

pytestmark = pytest.mark.ray

ASKED = ["Who are you?", "What is 12 + 7?", "Sort these numbers from small to large: 31, 4, 15."]
SETTINGS = {"gen_length": 32, "block_length": 8}
PROMPTS, BATCHES = 60, 30
WORDS = ["--model", "small", "--gen-length", "32", "--block-length", "8", "--batch", "2"]
Workers = Callable[[str], list[Any]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: dict[str, Path]) -> Path:
    """The working folder, with a model and prompts of different lengths."""
    monkeypatch.chdir(tmp_path)
    Path("small").symlink_to(small["tiny-llada"])
    lines = [json.dumps({"id": f"q{i}", "prompt": ASKED[i % 3] + " Please." * (i % 5)}) for i in range(PROMPTS)]
    Path("prompts.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def words(output: str, *more: str) -> list[str]:
    return ["generate", "-i", "prompts.jsonl", "-o", output, *WORDS, *more]


def begun(folder: Path, address: str, batches: int) -> subprocess.Popen[bytes]:
    """Return a run of its own process that has done some batches."""
    code = f"import sys; from esdllm.cli import main; sys.exit(main({words('killed.jsonl', '--ray', address)!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=folder)
    wait_for(lambda: len(done()) >= batches or process.poll() is not None)
    return process


def wait_for(there: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def done() -> list[Path]:
    """Return the batches of the run that were written."""
    return sorted(Path("killed.jsonl.run").glob("batch-*.jsonl"))


def test_whoever_is_killed_no_row_is_lost_and_none_answered_twice(
    folder: Path, cluster: Any, workers: Workers, capsys: pytest.CaptureFixture[str]
) -> None:
    run = begun(folder, cluster.address, 2)
    running = workers("MapWorker")
    assert len(running) == 2
    running[0].send_signal(signal.SIGKILL)
    at_least = len(done()) + 6
    wait_for(lambda: len(done()) >= at_least or run.poll() is not None)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    before = done()
    assert at_least <= len(before) < BATCHES
    kept = [{**json.loads(line), "text": "kept"} for line in before[0].read_text().splitlines()]
    before[0].write_text("".join(json.dumps(row) + "\n" for row in kept))

    assert main(words("killed.jsonl", "--ray", cluster.address, "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["prompts"], told["before"], told["batches"]) == (PROMPTS, 2 * len(before), BATCHES - len(before))
    assert main(words("here.jsonl", "--batch", "1")) == 0
    here, found = (
        [json.loads(line) for line in Path(name).read_text().splitlines()] for name in ("here.jsonl", "killed.jsonl")
    )
    again = {row["line"] for row in kept}
    assert found == [{**row, "text": "kept"} if row["line"] in again else row for row in here]
    wait_for(lambda: not workers("MapWorker"))


@pytest.mark.full
def test_a_batch_whose_workers_die_ends_the_run_and_the_same_command_goes_on(
    folder: Path, cluster: Any, workers: Workers, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--gen-length", "200", "--ray", cluster.address, "--jobs", "1"]
    code = f"import sys; from esdllm.cli import main; sys.exit(main({words('killed.jsonl', *more)!r}))"
    run = subprocess.Popen([sys.executable, "-c", code], cwd=folder, stderr=subprocess.PIPE, text=True)
    while run.poll() is None:
        for process in workers("MapWorker"):
            with suppress(psutil.NoSuchProcess):
                if "submit" in "".join(process.cmdline()):  # it decodes
                    time.sleep(0.3)  # and has said so
                    process.kill()
        time.sleep(0.05)
    assert run.returncode == 2
    assert run.stderr is not None
    assert "workers died 3 times with a batch of 2 prompts" in run.stderr.read()
    assert main(words("killed.jsonl", *more)) == 0
    assert len(Path("killed.jsonl").read_text().splitlines()) == PROMPTS


@pytest.mark.full
def test_a_machine_that_is_gone_costs_no_answer(folder: Path, cluster: Any, workers: Workers) -> None:
    third = cluster.add_node(num_cpus=1)
    run = begun(folder, cluster.address, 3)
    assert len(workers("MapWorker")) == 3
    cluster.remove_node(third, allow_graceful=False)
    assert run.wait(240) == 0
    assert main(words("here.jsonl", "--batch", "1")) == 0
    assert Path("killed.jsonl").read_bytes() == Path("here.jsonl").read_bytes()


def test_rows_of_a_dataset_have_the_engine_s_answers_however_they_are_put_into_batches(
    folder: Path, cluster: Any
) -> None:
    import ray.data

    engine = Engine.build(load_model("small", "cpu"), configure("es-dllm", settings=SETTINGS))
    asked = [*ASKED, "x " * 5000]
    with joined(cluster.address):
        config = engine.config.to_dict()
        rows = ray.data.from_items([{"at": i, "prompt": prompt} for i, prompt in enumerate(asked)]).map_batches(
            Decoder,
            fn_constructor_kwargs={
                "model": str(folder / "small"),
                "config": config,
                "slots": 2,
                "length": 256,
                "device": "cpu",
            },
            batch_size=3,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(size=1),
        )
        found = {row["at"]: row for row in rows.take_all()}
    for i, prompt in enumerate(ASKED):
        alone = engine.generate(prompt)
        assert (found[i]["text"], found[i]["forwards"]) == ((alone.text or [""])[0], alone.forwards)
        assert (found[i]["prompt"], found[i]["error"]) == (prompt, "")
    assert "shorten the prompt" in found[3]["error"]
    assert found[3]["text"] == ""


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--jobs", "3"], "3 workers, but this cluster has 2 processors; give --jobs 2"),
        (["--device", "cuda"], "1 workers, but this cluster has 0 GPUs; give --device cpu"),
        (["--device", "cuda:1"], "--device cuda:1 with --ray: each worker takes a GPU of its own; give --device cuda"),
        (["--quantize", "int3"], "int3"),
    ],
)
def test_what_cannot_be_is_said_as_it_is_here(
    folder: Path, cluster: Any, more: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words("answers.jsonl", "--ray", cluster.address, *more)) == 2
    assert told in capsys.readouterr().err
    assert not Path("answers.jsonl").exists()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:1", "cannot join the Ray cluster at 127.0.0.1:1"),
        ("nowhere", "cannot join the Ray cluster at nowhere"),
        ("ray://127.0.0.1:10001", "is of Ray's client"),
    ],
)
def test_a_cluster_that_is_not_there_is_named_soon(
    folder: Path, address: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    assert main(words("answers.jsonl", "--ray", address)) == 2
    assert told in capsys.readouterr().err
    assert time.monotonic() - began < 30


def test_an_error_of_a_worker_arrives_as_what_it_was() -> None:
    worker = _TellingDecoder(None, {"model": "nowhere", "config": {}, "device": "cpu"})
    found = worker({"batch": [3, 3], "row": [0, 1], "prompt": [[1], [2]]})
    assert (found["batch"], found["row"], len(found["fault"])) == ([3, 3], [0, 1], 2)
    with pytest.raises(EsdllmError) as alone:
        Decoder("nowhere", {}, device="cpu")
    with pytest.raises(type(alone.value)) as raised:
        _sound({"fault": found["fault"][0]})
    assert str(raised.value) == str(alone.value)


def test_a_batch_may_be_begun_three_times(cluster: Any, small: dict[str, Path]) -> None:
    import ray

    config = configure("es-dllm", settings={"gen_length": 16, "block_length": 8}).to_dict()
    options = {"model": str(small["tiny-llada"]), "config": config, "slots": 1, "length": 64, "device": "cpu"}
    batch = {"batch": [5], "row": [0], "prompt": [[11, 12]]}
    with joined(cluster.address):
        worker = _TellingDecoder(ray.remote(_Attempts).options(num_cpus=0).remote(), options)
        assert [worker(batch)["fault"] for _ in range(3)] == [[""]] * 3
        assert worker({**batch, "batch": [6]})["fault"] == [""]
        (told,) = worker(batch)["fault"]
    assert told.startswith("UnavailableError: workers died 3 times with a batch of 1 prompts")


@pytest.mark.parametrize(
    ("machines", "workers", "device", "found"),
    [
        ([{"CPU": 4.0}, {"CPU": 2.0}], None, None, Share(2, 2, 0)),
        ([{"CPU": 4.0}, {"CPU": 2.0}], 3, None, Share(3, 2, 0)),
        ([{"CPU": 4.0}, {"CPU": 2.0}], 1, "cpu", Share(1, 4, 0)),
        ([{"CPU": 5.0}, {"CPU": 3.0}], 4, None, Share(4, 1, 0)),
        ([{"CPU": 1.0}, {"CPU": 1.0}], 2, None, Share(2, 1, 0)),
        ([{}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}], None, None, Share(3, 1, 1)),
        ([{"CPU": 8.0, "GPU": 2.0}], 1, "cuda", Share(1, 1, 1)),
        ([{"CPU": 8.0, "GPU": 2.0}], None, "cpu", Share(1, 8, 0)),
    ],
)
def test_workers_fit_on_the_machines_and_take_as_much_as_they_can(
    machines: list[dict[str, float]], workers: int | None, device: str | None, found: Share
) -> None:
    assert shares(machines, workers, device) == found


@pytest.mark.parametrize(
    ("machines", "workers", "device", "told"),
    [
        ([{"CPU": 2.0}], 3, None, "give --jobs 2"),
        ([{}], None, None, "ray start --num-cpus"),
        ([{"CPU": 2.0, "GPU": 1.0}], 2, None, "give --jobs 1"),
        ([{"CPU": 2.0}], None, "cuda", "ray start --num-gpus"),
        ([{"CPU": 2.0, "GPU": 1.0}], None, "cuda:0", "give --device cuda"),
    ],
)
def test_a_cluster_that_is_too_small_says_what_would_do(
    machines: list[dict[str, float]], workers: int | None, device: str | None, told: str
) -> None:
    with pytest.raises(UnavailableError, match=told):
        shares(machines, workers, device)
