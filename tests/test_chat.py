"""The chat's laws: answers are the pipeline's, what is decided is kept, a wrong line changes nothing."""

from __future__ import annotations

import io
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
from rich.console import Console

from esdllm import Answer, Catalogue, Frame, Model, Pipeline, StepPlan, Stream, configure, load_model
from esdllm.cli import main
from esdllm.cli.choice import Choice
from esdllm.cli.talk import Chat
from esdllm.cli.watch import CanvasPanel

SHORT = ["--gen-length", "16", "--block-length", "8"]
WHO, SUM = "Who are you?", "What is 12 + 7?"


@pytest.fixture(scope="module")
def tiny(catalogue: Catalogue) -> Model:
    return load_model("tiny-llada", "cpu", catalogue=catalogue)


def told(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def talk(tiny: Model, catalogue: Catalogue, kind: type[Chat] = Chat, watch: bool = False) -> Chat:
    choice = Choice(None, None, None, {"gen_length": 16, "block_length": 8})
    console = Console(file=io.StringIO(), width=100, force_terminal=watch)
    return kind("tiny-llada", Pipeline.of(tiny, choice.config(catalogue), catalogue), choice, console, watch)


@pytest.fixture
def chat(tiny: Model, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Chat:
    monkeypatch.chdir(tmp_path)
    return talk(tiny, catalogue)


@pytest.mark.slow
def test_lines_of_a_pipe_are_answered_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny: Model
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{WHO}\n\n{SUM}\n"))
    assert main(["chat", "--model", "tiny-llada", *SHORT]) == 0
    pipe = Pipeline.of(tiny, configure("es-dllm-parallel", settings={"gen_length": 16, "block_length": 8}))
    first = pipe(WHO)
    turns = [{"role": "user", "content": WHO}, first.message, {"role": "user", "content": SUM}]
    second = pipe.chat(turns)  # type: ignore[arg-type]
    assert capsys.readouterr().out == f"{first.text}\n{second.text}\n"


def test_a_conversation_holds_every_turn(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat.run(iter([WHO, SUM]), stops=True)
    assert [turn["role"] for turn in chat.messages] == ["user", "assistant"] * 2
    said = capsys.readouterr().out.splitlines()
    assert said == [turn["content"] for turn in chat.messages[1::2]]


def test_a_system_message_stays_when_the_conversation_is_forgotten(chat: Chat) -> None:
    chat.messages.append({"role": "system", "content": "Be short."})
    chat.run(iter([WHO, "/reset"]), stops=True)
    assert chat.messages == [{"role": "system", "content": "Be short."}]


class Interrupted(Chat):
    """One whose answers are stopped after some steps."""

    after = 6

    def _follow(self, stream: Stream) -> None:
        for number, _ in enumerate(stream, 1):
            if number == self.after:
                raise KeyboardInterrupt


def test_ctrl_c_stops_the_answer_and_keeps_what_is_decided(
    tiny: Model, catalogue: Catalogue, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = talk(tiny, catalogue, Interrupted)
    whole = chat.pipe(WHO)
    assert chat.run(iter([WHO]), stops=True)
    kept = capsys.readouterr().out.rstrip("\n")
    assert chat.messages[-1] == {"role": "assistant", "content": kept}
    pieces = [piece for piece in kept.split("…") if piece]
    assert pieces
    assert all(piece in whole.text for piece in pieces)
    assert "stopped" in told(chat.console)
    assert chat.pipe(WHO) is not None  # the pipeline is free


def test_an_answer_that_stands_whole_leaves_its_tail_undecided_and_says_so(
    tiny: Model, catalogue: Catalogue, capsys: pytest.CaptureFixture[str]
) -> None:
    chat = talk(tiny, catalogue)
    chat.run(iter(["/set gen_length=64", "/set block_length=64", "/preset es-dllm-parallel", WHO]), stops=True)
    whole = Pipeline.of(tiny, attrs.evolve(chat.pipe.config, early_stop=False), catalogue)(WHO)
    assert capsys.readouterr().out == f"{whole.text}\n"
    assert ", whole: " in told(chat.console)
    assert "stopped" not in told(chat.console)
    chat.run(iter(["/reset", "/set early_stop=false", WHO]), stops=True)
    assert capsys.readouterr().out == f"{whole.text}\n"
    assert told(chat.console).count(", whole: ") == 1


def test_ctrl_c_ends_a_pipe(tiny: Model, catalogue: Catalogue) -> None:
    chat = talk(tiny, catalogue, Interrupted)
    with pytest.raises(KeyboardInterrupt):
        chat.run(iter([WHO]), stops=False)
    assert chat.messages == []


def test_a_message_that_cannot_be_answered_is_forgotten(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    assert not chat.run(iter(["word " * 2000, WHO]), stops=True)
    assert "exceed the model's context of 1024" in told(chat.console)
    assert [turn["content"] for turn in chat.messages] == [WHO, capsys.readouterr().out.rstrip("\n")]


class Silent(Chat):
    """One whose answers are empty."""

    def _answer(self, stops: bool) -> tuple[Answer, Frame | None]:
        answer, frame = super()._answer(stops)
        return attrs.evolve(answer, text=""), frame


def test_an_empty_answer_is_no_turn_and_says_so(tiny: Model, catalogue: Catalogue) -> None:
    chat = talk(tiny, catalogue, Silent)
    assert chat.run(iter([WHO]), stops=True)
    assert chat.messages == []
    assert "the answer is empty, so the message is forgotten" in told(chat.console)


# commands


def test_a_preset_and_settings_go_over_those_of_the_command_line(chat: Chat) -> None:
    assert chat.run(iter(["/preset dual-cache", "/set gen_length=24", "/set unmasking=threshold"]), stops=True)
    expected = configure("dual-cache", settings={"gen_length": 24, "block_length": 8}, sets=["unmasking=threshold"])
    assert chat.pipe.config == expected
    assert "preset dual-cache, gen_length 24, block_length 8" in told(chat.console)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/preset dual-cash", "unknown preset 'dual-cash'; did you mean 'dual-cache'?"),
        ("/set gen_lenght=3", "unknown setting 'gen_lenght'; did you mean 'gen_length'?"),
        ("/set importance.alpa=3", "did you mean 'alpha'?"),
        ("/set gen_length", "cannot read the setting 'gen_length'"),
        ("/sav talk.json", "unknown command '/sav'; did you mean '/save'?"),
        ("/save", "/save needs a file, such as /save talk.json"),
        ("/save missing/talk.json", "cannot write missing/talk.json: No such file"),
        ("/load", "/load needs a file"),
        ("/load missing.json", "cannot read missing.json: No such file"),
        ("/load bad.json", "bad.json is not JSON"),
        ("/load other.json", "other.json holds no conversation"),
    ],
)
def test_a_wrong_command_says_so_and_changes_nothing(chat: Chat, line: str, message: str) -> None:
    Path("bad.json").write_text("{")
    Path("other.json").write_text('[{"role": "user"}]')
    config, messages = chat.pipe.config, list(chat.messages)
    assert not chat.run(iter([line]), stops=True)
    assert message in told(chat.console)
    assert (chat.pipe.config, chat.messages) == (config, messages)


def test_a_saved_conversation_goes_on(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.run(iter([WHO, "/save talk.json", SUM]), stops=True)
    expected = capsys.readouterr().out.splitlines()[-1]
    saved = json.loads(Path("talk.json").read_text())
    assert saved["messages"] == chat.messages[:2]
    assert saved["config"] == chat.pipe.config.to_dict()
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{SUM}\n"))
    assert main(["chat", "--model", "tiny-llada", *SHORT, "--preset", "es-dllm", "--load", "talk.json"]) == 0
    assert capsys.readouterr().out == expected + "\n"


def test_nothing_after_quit_is_read(chat: Chat) -> None:
    lines = iter(["/help", "/preset", "/set", "/quit", WHO])
    assert chat.run(lines, stops=True)
    assert next(lines) == WHO
    for name in ("/help", "/preset", "/set", "/save", "/load", "/reset", "/quit"):
        assert name in told(chat.console)
    assert "es-dllm-parallel" in told(chat.console)


def test_standard_input_that_is_no_text_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    assert main(["chat", "--model", "tiny-llada", *SHORT]) == 2
    assert "standard input is not valid utf-8 at byte 0" in capsys.readouterr().err


# the canvas


class Letters:
    """A codec of letters."""

    stop_ids = (9,)

    def decode(self, ids: Any, keep_special: bool = False) -> str:
        return "".join(" abcdefgh|"[i] for i in ids)


def frame(**over: Any) -> Frame:
    made: dict[str, Any] = {
        "forwards": 3,
        "tokens": (1, 2, 0, 0, 0, 0, 9),
        "guesses": (-1, -1, 3, 4, -1, -1, -1),
        "committed": (False, True, False, False, False, False, False),
        "computed": (True, True, True, False, False, False, False),
        "block": range(5),
        "number": 0,
        "plan": StepPlan(8, 4, 4, (8, 4), ()),
        "revises": False,
        "mask": 0,
        "length": 8,
    }
    return Frame(**{**made, **over})


def styles(made: Frame) -> list[tuple[str, str]]:
    text = CanvasPanel(Letters(), "title", 80).canvas(made)  # type: ignore[arg-type]
    return [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]


def test_decided_new_candidate_skipped_and_masked_tokens_all_look_different() -> None:
    assert styles(frame()) == [
        ("a", "default"),
        ("b", "bold black on green"),
        ("c", "italic cyan"),
        ("d", "italic bright_black"),
        ("· ", "cyan"),
        ("· ", "bright_black"),
        ("∎ ", "bright_black"),
    ]


def test_ends_of_the_text_that_are_not_decided_are_hollow() -> None:
    ended = frame(tokens=(1, 2, 0, 0, 0, 9, 9), guesses=(-1, -1, 9, 9, -1, -1, -1))
    assert styles(ended)[2:] == [
        ("□ ", "italic cyan"),
        ("□ ", "italic bright_black"),
        ("· ", "cyan"),
        ("∎ ∎ ", "bright_black"),
    ]


def test_nothing_is_called_skipped_where_the_run_does_not_tell() -> None:
    assert ("cd", "italic cyan") in styles(frame(computed=None))


def test_a_watched_chat_shows_the_canvas_and_answers_the_same(
    tiny: Model, catalogue: Catalogue, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, watched = talk(tiny, catalogue), talk(tiny, catalogue, watch=True)
    plain.run(iter([WHO]), stops=True)
    expected = capsys.readouterr().out
    watched.run(iter([WHO]), stops=True)
    assert capsys.readouterr().out == expected
    assert "of 16 decided" in told(watched.console)
    assert "of 16 decided" not in told(plain.console)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal")
def test_a_real_terminal_stops_an_answer_and_leaves(tmp_path: Path) -> None:
    import pty

    child, terminal = pty.fork()
    if child == 0:
        words = [
            "chat",
            "--model",
            "tiny-llada",
            "--preset",
            "es-dllm",
            "--gen-length",
            "512",
            "--set",
            "early_stop=false",
        ]
        code = f"from esdllm.cli import main; raise SystemExit(main({words!r}))"
        os.chdir(tmp_path)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which jobs in the background of a shell ignore
        os.execv(sys.executable, [sys.executable, "-c", code])
    screen = Screen(terminal)
    screen.until("/help says")
    screen.until("> ")
    os.write(terminal, WHO.encode() + b"\r")
    screen.until("forward 3")
    os.write(terminal, b"\x03")
    screen.until("stopped")
    screen.until("> ")  # what is typed before is lost with the line that it was typed into
    os.write(terminal, b"/save talk.json\r")
    screen.until("2 messages in")
    screen.until("> ")
    os.write(terminal, b"/quit\r")  # Ctrl-D is lost if it comes before the line is read key by key
    assert ended(child) == 0
    assert json.loads((tmp_path / "talk.json").read_text())["messages"][1]["content"]


def ended(child: int, seconds: float = 60.0) -> int:
    """Return a process' exit status; kill it if it does not end."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Screen:
    """What a terminal was written."""

    def __init__(self, terminal: int) -> None:
        self._terminal, self._text = terminal, ""

    def until(self, awaited: str, seconds: float = 120.0) -> None:
        deadline = time.monotonic() + seconds
        while awaited not in self._text:
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {awaited!r} in {seconds} s: {self._text[-2000:]}"
            self._text += os.read(self._terminal, 65536).decode(errors="replace")
        self._text = self._text.split(awaited, 1)[1]
