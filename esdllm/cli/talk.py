"""A conversation on a terminal or in a pipe: messages, answers, commands."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
from rich.console import Console
from rich.live import Live

from esdllm.cli.choice import Choice
from esdllm.cli.shared import counted, print_answer
from esdllm.cli.watch import CanvasPanel
from esdllm.config import parse_set
from esdllm.config.layers import SettingsLayer
from esdllm.errors import ConfigError, EsdllmError, InputError, grouped, known
from esdllm.parsing import parse_json
from esdllm.use.answers import Answer
from esdllm.use.batching.rows import is_turn, write_atomically
from esdllm.use.frames import Frame
from esdllm.use.pipeline import Pipeline
from esdllm.use.streaming import Stream, StreamEvent
from esdllm.views import Message

__all__ = ["Chat"]


_FRAME = 0.04  # seconds between two pictures, at least: what changes faster is not seen
_HELP = """\
/help               this
/preset [NAME]      take another preset, or list them
/set [KEY=VALUE]    one setting, such as gen_length=64, or what was set
/save FILE          write the conversation
/load FILE          go on with one that was written
/clear              forget the conversation; so does /reset
/exit               leave; so do /quit, /bye and Ctrl-D
Ctrl-C stops an answer and keeps what is decided. Begin a message with a space if it begins with /."""
_COMMANDS = ("/help", "/preset", "/set", "/save", "/load", "/clear", "/reset", "/exit", "/quit", "/bye")


@attrs.define
class Chat:
    """A conversation on a terminal, or in a pipe."""

    name: str
    """the model's"""
    pipe: Pipeline
    choice: Choice
    """what the command line says of the settings"""
    console: Console
    """where all but the answers goes"""
    watch: bool = False
    """whether the canvas is shown"""
    messages: list[Message] = attrs.field(factory=list)
    layers: list[SettingsLayer] = attrs.field(factory=list)
    """what was set since"""

    def run(self, lines: Iterator[str], stops: bool) -> bool:
        """Take lines until they end or one says /exit; return whether nothing went wrong.

        `stops` says whether Ctrl-C stops an answer, rather than everything.
        """
        good = True
        for line in lines:
            try:
                if line.startswith("/"):
                    if not self._command(*line.strip().partition(" ")[::2]):
                        break
                elif line.strip():
                    self._say(line.strip(), stops)
            except EsdllmError as error:
                good = False
                self.console.print(f"error: {' '.join(str(error).split())}", soft_wrap=True, markup=False)
        return good

    def _say(self, text: str, stops: bool) -> None:
        """Answer a message; one that cannot be answered, or whose answer was stopped at once, is forgotten."""
        before = len(self.messages)
        self.messages.append({"role": "user", "content": text})
        try:
            answer, frame = self._answer(stops)
        except BaseException:
            del self.messages[before:]
            raise
        print_answer(answer.text)
        self._tell(f"{answer.facts()}{_tail(frame) if answer.complete else ''}")
        if answer.text:
            self.messages.append(answer.message)
        else:
            del self.messages[before:]
            self._tell("the answer is empty, so the message is forgotten")

    def _answer(self, stops: bool) -> tuple[Answer, Frame | None]:
        """Return an answer and its canvas as it was at the end."""
        self.pipe.check_chat()
        whole = False
        with self.pipe.stream(self.messages) as stream:
            try:
                self._follow(stream)
                whole = True
            except KeyboardInterrupt:
                if not stops:
                    raise
            stream.close()
            return attrs.evolve(stream.answer, complete=whole), stream.frame

    def _events(self, stream: Stream) -> Iterator[StreamEvent]:
        """Yield a stream's events until the answer stands whole; what comes behind its end is then not decided any more."""
        for event in stream:
            yield event
            if self.pipe.config.early_stop and len(event.settled) < event.frame.settled:
                return

    def _follow(self, stream: Stream) -> None:
        codec = self.pipe.model.codec
        if not self.watch or codec is None:
            for _ in self._events(stream):
                pass
            return
        panel, shown = CanvasPanel(codec, self.name, self.console.width), 0.0
        with Live(console=self.console, transient=True, auto_refresh=False) as live:
            for event in self._events(stream):
                if not event.final and time.perf_counter() - shown >= _FRAME:
                    live.update(panel.draw(event.frame), refresh=True)
                    shown = time.perf_counter()

    def _command(self, name: str, words: str) -> bool:
        """Obey a command; return whether to go on."""
        words = words.strip()
        match name:
            case "/help" | "/?":
                self.console.print(_HELP, markup=False)
            case "/preset":
                self._set(SettingsLayer("--preset", {"preset": words})) if words else self._list_presets()
            case "/set":
                self._set(SettingsLayer("--set", parse_set(words))) if words else self._tell_set()
            case "/save":
                self.save(words)
            case "/load":
                self.load(words)
            case "/clear" | "/reset":
                self.messages = [turn for turn in self.messages if turn["role"] == "system"]
                self._tell("the conversation is forgotten")
            case "/exit" | "/quit" | "/bye":
                return False
            case _:
                raise InputError(f"unknown command '{name}'; {known(name, _COMMANDS)}")
        return True

    def _set(self, layer: SettingsLayer) -> None:
        """Take a setting over all others; if it is wrong, nothing changes."""
        catalogue, layers = self.pipe.catalogue, [*self.layers, layer]
        settled = catalogue.settle([*self.choice.layers, *layers], default=self.choice.default)
        config = settled.config()
        for problem in settled.component_problems(catalogue.build):
            raise ConfigError(problem)
        pipe = Pipeline.of(self.pipe.model, config, catalogue)
        self.pipe.engine.close()
        self.pipe, self.layers = pipe, layers
        self._tell_set()

    def _tell_set(self) -> None:
        layers = [*self.choice.layers, *self.layers]
        preset = self.pipe.catalogue.settle(layers, default=self.choice.default).preset
        config = self.pipe.config
        lengths = f"gen_length {config.gen_length}, block_length {config.block_length}"
        self._tell(f"{f'preset {preset}' if preset else 'no preset'}, {lengths}")

    def _list_presets(self) -> None:
        catalogue = self.pipe.catalogue
        names = grouped(catalogue.names("preset"))
        for name in names:
            if name not in catalogue.names("preset"):  # a beginning and how many there are
                self.console.print(name, soft_wrap=True, markup=False)
                continue
            self.console.print(f"{name:36} {catalogue.entry('preset', name).summary}", soft_wrap=True, markup=False)

    def save(self, path: str) -> None:
        """Write the conversation as JSON.

        Raises:
            InputError: no file is named, or it cannot be written.
        """
        if not path:
            raise InputError("/save needs a file, such as /save talk.json")
        content = {"model": self.name, "config": self.pipe.config.to_dict(), "messages": list(self.messages)}
        try:
            text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
            write_atomically(Path(path).expanduser(), text.encode(errors="backslashreplace"))
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        self._tell(f"{counted(len(self.messages), 'message')} in {path}")

    def load(self, path: str) -> None:
        """Take the messages of a file that `save` wrote, or of a JSON list of them; the settings stay.

        Raises:
            InputError: no file is named, or it holds no conversation.
        """
        if not path:
            raise InputError("/load needs a file, such as /load talk.json")
        try:
            found = parse_json(Path(path).expanduser().read_bytes())
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"{path} is not JSON: {error}") from error
        turns = found.get("messages") if isinstance(found, dict) else found
        if not isinstance(turns, list) or not all(map(is_turn, turns)):
            raise InputError(f'{path} holds no conversation: a list of {{"role": "user", "content": text}}')
        self.messages = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
        self._tell(f"{counted(len(self.messages), 'message')} from {path}")

    def _tell(self, text: str) -> None:
        self.console.print(text, style="dim", soft_wrap=True, markup=False)


def _tail(frame: Frame | None) -> str:
    """Return that an answer was whole before its canvas was; empty if all of that is decided."""
    left = 0 if frame is None else len(frame.tokens) - frame.decided
    return f", whole: {counted(left, 'position')} behind its end left undecided" if left else ""
