"""`esdllm serve`: what it refuses before anything is read, and the process from its start to its end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest
from projects import Run
from stand_in import chat, until

from esdllm import Engine, InputError
from esdllm.cli import serve
from esdllm.cli.serve import Serve
from esdllm.serving.scheduler import Alike, InOrder, RefreshesTogether, WidestFirst
from esdllm.serving.session import Session

pytestmark = pytest.mark.covers

CHAT = "/v1/chat/completions"


@pytest.fixture
def taken() -> Iterator[str]:
    """A port that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as at:
        yield str(at.getsockname()[1])


def test_a_port_that_is_taken_is_named_before_weights_are_read(run: Run, taken: str) -> None:
    code, out, err = run("serve", "--port", taken, "--model", "no-such-checkpoint")
    assert (code, out) == (2, "")
    where = f"cannot serve at 127.0.0.1, port {taken}: address already in use"
    assert err == f"error: {where}; give another --port, 0 for any that is free\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--slots", "0"], "--slots 0; give a number from 1, or auto"),
        (["--slots", "many"], "--slots many; give a number from 1, or auto"),
        (["--slots", "-1"], "--slots -1; give"),
        (["--slots", "\u0663"], "--slots \u0663; give"),
        (["--slots", "1" * 10], "--slots 1111111111; give"),
        (["--timeout", "0"], "--timeout 0; give seconds, above 0"),
        (["--timeout", "nan"], "--timeout nan; give seconds, above 0"),
        (["--timeout", "-1"], "--timeout -1; give seconds, above 0"),
        (["--port", "65536"], "'--port'"),
        (["--api-key-file", "none"], "cannot read the keys in none: No such file or directory"),
        (["--preset", "none"], "none"),
        (["--set", "colour=red"], "unknown setting 'colour'"),
        (["--host", "no.such.host.invalid"], "there is no host 'no.such.host.invalid' here"),
        (["--ignore", "tool"], "--ignore tool: no field of that name is refused; did you mean 'tools'?"),
        (["--ignore", "temperature"], "--ignore temperature: no field of that name is refused;"),
        (["--length", "0"], "'--length'"),
        (["--max-queue", "-1"], "'--max-queue'"),
        (["--policy", "static"], "--policy static: known: oldest, refreshes-together, widest"),
        (["--policy", "oldest", "--patience", "3"], "--patience 3: the policy oldest has none; widest and refreshes"),
        (["--patience", "-1"], "'--patience'"),
        (["--admission", "in-orde"], "--admission in-orde: did you mean 'in-order'?"),
    ],
)
def test_what_cannot_be_served_is_refused(run: Run, taken: str, words: list[str], message: str) -> None:
    code, _, err = run("serve", "--port", taken, *words)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_who_goes_first_and_who_is_admitted_are_as_asked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []

    def open_(engine: Engine, **named: Any) -> None:
        told.append(named)
        raise InputError("far enough")

    monkeypatch.setattr(Session, "open", open_)
    words = ("serve", "--port", "0", "--slots", "1", "--gen-length", "32", "--length", "64")
    assert run(*words)[2] == "error: far enough\n"
    assert run(*words, "--policy", "widest", "--patience", "3", "--admission", "alike")[2] == "error: far enough\n"
    found = [(one["policy"], one["admission"]) for one in told]
    assert found == [(RefreshesTogether(), InOrder()), (WidestFirst(patience=3), Alike())]


def test_a_key_that_is_empty_is_no_open_door(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESDLLM_API_KEY", "")
    code, _, err = run("serve", "--port", "0")
    assert (code, "ESDLLM_API_KEY is no key" in err) == (2, True)


def test_components_that_couple_rows_need_a_word_more(run: Run, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = 'importance "lazy" couples rows; choose another'
    monkeypatch.setattr(serve, "coupled", lambda *_: [reason])
    code, _, err = run("serve", "--port", taken)
    assert (code, err) == (2, f"error: {reason}; --allow-coupled serves all the same\n")
    code, _, err = run("serve", "--port", taken, "--allow-coupled")
    assert err.startswith(f"hint: {reason}\nerror: cannot serve at")


@pytest.mark.parametrize(
    ("host", "keys", "names"),
    [
        ("127.0.0.1", (), ("127.0.0.1", "localhost", "[::1]", "127.0.0.1", "proxy")),
        ("::1", (), ("127.0.0.1", "localhost", "[::1]", "::1", "proxy")),
        ("localhost", (), ("127.0.0.1", "localhost", "[::1]", "localhost", "proxy")),
        ("0.0.0.0", (), ()),
        ("127.0.0.1", ("key",), ()),
    ],
)
def test_this_machine_alone_is_asked_by_its_own_names(host: str, keys: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert Serve(host=host, allow_host=["proxy"])._hosts(keys) == names


def test_the_help_teaches(run: Run) -> None:
    code, out, _ = run("serve", "--help")
    assert code == 0
    for told in (
        "OpenAI",
        "curl http://127.0.0.1:8000/v1/chat/completions",
        "--api-key-file",
        "ESDLLM_API_KEY",
        "SIGTERM",
    ):
        assert told in out


class Process:
    """`esdllm serve` as a process of its own; what it writes is read as it comes."""

    def __init__(self, words: list[str], folder: Path) -> None:
        command = [sys.executable, "-m", "esdllm", "serve", "--port", "0", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.running = subprocess.Popen(
            command, text=True, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes
        )
        self.out: list[str] = []
        self.err: list[str] = []
        for lines, pipe in ((self.out, self.running.stdout), (self.err, self.running.stderr)):
            Thread(target=lambda lines=lines, pipe=pipe: lines.extend(pipe), daemon=True).start()  # type: ignore[misc]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.running, name)


@contextmanager
def process(words: list[str], folder: Path) -> Iterator[Process]:
    found = Process(words, folder)
    try:
        yield found
    finally:
        found.running.kill()
        found.running.wait()


@pytest.mark.serial
@pytest.mark.slow
def test_a_process_serves_drains_at_a_signal_and_stops_at_the_second(small: dict[str, Path], tmp_path: Path) -> None:
    words = ["-m", str(small["tiny-llada"]), "--served-model-name", "small", "--slots", "2", "--length", "512", "--device", "cpu",
             "--set", "early_stop=false"]  # fmt: skip
    with process(words, tmp_path) as first:
        until(lambda: any("Ctrl-C ends it" in line for line in first.err), 60)
        told = next(line for line in first.err if "Ctrl-C" in line)
        (address,) = re.findall(
            r"^serving small at (http://127\.0\.0\.1:\d+), 2 slots of 512 tokens; Ctrl-C ends it$", told
        )
        assert httpx.post(address + CHAT, json=chat(), timeout=30).status_code == 200
        long = chat(stream=True, max_tokens=400, temperature=1)
        with httpx.stream("POST", address + CHAT, json=long, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            first.send_signal(signal.SIGTERM)
            until(lambda: httpx.get(address + "/health").status_code == 503)
            assert httpx.post(address + CHAT, json=chat(), timeout=30).status_code == 503
            assert "data: [DONE]" in list(lines)
        assert first.wait(20) == 0
        until(lambda: len(first.out) >= 3)
        entries = [json.loads(line) for line in first.out]
        assert [entry["status"] for entry in entries] == [200, 503, 200]
        assert entries[2]["completion_tokens"] > 0
        assert not [line for line in first.err if "Traceback" in line]
    with process(words, tmp_path) as second:
        until(lambda: any("Ctrl-C ends it" in line for line in second.err), 60)
        (address,) = re.findall(r"http://\S+\d", second.err[-1])
        with httpx.stream("POST", address + CHAT, json=long, timeout=60) as answer:
            lines = answer.iter_lines()  # kept: without it the answer is closed
            next(lines)
            second.send_signal(signal.SIGINT)
            until(lambda: httpx.get(address + "/health").status_code == 503)
            second.send_signal(signal.SIGINT)
            assert second.wait(20) == 130
        assert not [line for line in second.err if "Traceback" in line]
