"""`esdllm chat`: the command, and where its lines come from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress

import attrs
import typer
from rich.console import Console

from esdllm.cli.choice import Choice
from esdllm.cli.loading import load_asked
from esdllm.cli.options.chat import DEFAULT_PRESET, TalkOptions
from esdllm.cli.prompts import text_of_input
from esdllm.cli.shared import stderr
from esdllm.cli.talk import Chat
from esdllm.plugins.catalogue import Catalogue
from esdllm.use.pipeline import Pipeline


@attrs.frozen(kw_only=True)
class Talk(TalkOptions):
    """Reads lines, and answers each."""

    def run(self) -> None:
        """Talk until there are no more lines."""
        choice = Choice.of(self, default=DEFAULT_PRESET, seed=self.seed)
        catalogue, console = Catalogue.load(), stderr()
        decode = choice.config(catalogue)
        name, model = load_asked(self, catalogue)
        pipe = Pipeline.of(model, decode, catalogue)
        talk = Chat(name, pipe, choice, console, self.watch and console.is_terminal)
        if self.system is not None:
            talk.messages.append({"role": "system", "content": self.system})
        if self.saved is not None:
            talk.load(str(self.saved))
        interactive = sys.stdin.isatty()
        if interactive:
            console.print(
                f"{name}, {choice.label()}; /help says what you can do", style="dim", soft_wrap=True, markup=False
            )
        if not talk.run(_typed(console) if interactive else _piped(), stops=interactive):
            raise typer.Exit(1)


def _typed(console: Console) -> Iterator[str]:
    """Yield lines as they are typed."""
    with suppress(ImportError):  # not on Windows
        import readline  # noqa: F401  (gives input() a history)
    try:
        while True:
            yield _typed_line(console)
    except EOFError:
        console.print()


def _typed_line(console: Console) -> str:
    try:
        return console.input("[bold]> [/]")
    except KeyboardInterrupt:
        console.print("\n/exit or Ctrl-D leaves", style="dim")
        return ""


def _piped() -> Iterator[str]:
    """Yield the lines of standard input."""
    with text_of_input() as source:
        for line in source:
            yield line.rstrip("\n")
