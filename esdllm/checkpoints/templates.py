"""Chat templates: programs that come with checkpoints, rendered in a process of their own, within bounds of time and memory.

A template's language can double a text in a loop, count to 10**9, or ask for a string of 10**9 characters in one call, and
nothing inside the same process stops all of that. So a small process renders (`template_worker`), started at the first
conversation and kept for the next ones; where it takes too long it is killed.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Timer
from typing import Any, NoReturn

import attrs

from esdllm.errors import CheckpointError, InputError, UnavailableError
from esdllm.foreign import reason
from esdllm.views import Message

__all__ = ["ChatTemplate"]

_SECONDS = 3.0  # for one conversation, most of which take less than a millisecond
_START_SECONDS = 60.0
_MEMORY = 1 << 29  # bytes
_LONGEST = 1_000_000  # characters, beside what the conversation has four times over
_LARGE = 100_000  # characters of a conversation that may itself be why its rendering takes long

_MEND = "pass text and chat=False (--no-chat), or mend the checkpoint's chat_template"

_ABOUT = {
    "long": "renders more than {longest} characters",
    "deep": "calls itself without end",
    "memory": f"takes more than {_MEMORY >> 20} MiB of memory",
    "time": f"takes more than {_SECONDS:g} seconds",
    "ended": "ended the process that renders it",
}
"""what templates come to that leave their bounds"""


@attrs.frozen
class ChatTemplate:
    """What turns conversations into text: a template of jinja2, and the variables that it reads beside the messages."""

    text: str
    """the template"""
    variables: Mapping[str, Any]
    """such as bos_token; plain values"""

    def render(self, messages: Sequence[Message]) -> str:
        """Return a conversation as text, up to where the assistant's answer begins, as transformers renders it.

        Raises:
            InputError: the template refuses this conversation, or cannot render it; says why.
            CheckpointError: it is no template, or leaves its bounds of time, memory and length.
        """
        turns = [{key: value for key, value in turn.items() if value is not None} for turn in messages]
        given = {"messages": turns, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            written = json.dumps({**self.variables, **given})
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"a conversation holds text, numbers, lists and mappings alone; {reason(error)}"
            ) from error
        longest = _LONGEST + 4 * len(written)
        found = _WORKER.ask(f'{{"template": {json.dumps(self.text)}, "longest": {longest}, "variables": {written}}}')
        if "text" not in found:
            _raise(found["error"], found["reason"], len(written), longest)
        return found["text"]


def _raise(kind: str, said: str, size: int, longest: int) -> NoReturn:
    """Raise what a rendering came to; a large conversation may itself be why it left its bounds."""
    if kind == "refused":
        raise InputError(f"the checkpoint's chat template refuses this conversation: {said or 'it does not say why'}")
    if kind in _ABOUT:
        about = f"the checkpoint's chat template {_ABOUT[kind].format(longest=longest)}"
        if size >= _LARGE:
            raise InputError(f"{about} for this conversation of {size} characters; shorten it")
        raise CheckpointError(f"{about}; {_MEND}")
    if kind == "syntax":
        raise CheckpointError(f"the checkpoint's chat template is none of jinja2: {said}; {_MEND}")
    raise InputError(f"the checkpoint's chat template cannot render this conversation: {said}; {_MEND}")


class _Worker:
    """The process that renders for this one; started when it is needed, and again after it was killed."""

    def __init__(self) -> None:
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)  # the parent's process answers the parent

    def _forget(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, request: str) -> dict[str, str]:
        """Return the answer to a request, or what ended the process."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = _started()
            line, late = _exchange(self._process, request, _SECONDS)
        found: dict[str, str] = json.loads(line) if line else {"error": "time" if late else "ended", "reason": ""}
        return found

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)


_WORKER = _Worker()
atexit.register(_WORKER.close)


def _started() -> subprocess.Popen[str]:
    """Return the process, ready."""
    found = (find_spec(name) for name in ("jinja2", "markupsafe"))
    folders = dict.fromkeys(str(Path(str(one and one.origin)).parents[1]) for one in found)
    worker = Path(__file__).with_name("template_worker.py")
    command = [sys.executable or "python", "-I", "-S", str(worker), str(_MEMORY), *folders]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    try:
        process = subprocess.Popen(command, encoding="ascii", **pipes)
    except OSError as error:
        raise UnavailableError(f"cannot start the process that renders chat templates: {reason(error)}") from error
    if not _exchange(process, "", _START_SECONDS)[0]:
        raise UnavailableError(f"the process that renders chat templates does not start: {' '.join(command)}")
    return process


def _exchange(process: subprocess.Popen[str], request: str, seconds: float) -> tuple[str, bool]:
    """Return the line that answers a request, empty if the process ended first, and whether it was late and is killed."""
    if process.stdin is None or process.stdout is None:
        raise AssertionError("the process is started with pipes")
    started, timer = time.monotonic(), Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    line = ""
    try:
        if request:
            process.stdin.write(f"{request}\n")
            process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        pass
    finally:
        timer.cancel()
        late = time.monotonic() - started >= seconds
        whole = line.endswith("\n")
        if late or not whole:  # a Ctrl-C too: its answer would be taken for the next request's
            _end(process)
    return (line if whole else ""), late


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    with suppress(OSError):  # what was not written yet has no reader
        process.communicate()
