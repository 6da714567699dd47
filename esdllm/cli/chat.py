"""`esdllm chat`: the command, and where its lines come from."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import attrs
import typer
from rich.console import Console

from esdllm.cli.choice import Choice
from esdllm.cli.command import command
from esdllm.cli.options import (
    BlockLength,
    Compute,
    ConfigFile,
    Debug,
    Device,
    Dtype,
    FamilyName,
    GenLength,
    ModelName,
    PresetName,
    ProfileName,
    Quantize,
    Sets,
)
from esdllm.cli.prompts import text_of_input
from esdllm.cli.shared import load_asked, stderr
from esdllm.cli.talk import Chat
from esdllm.plugins.catalogue import Catalogue
from esdllm.use.pipeline import Pipeline


@attrs.frozen(kw_only=True)
class Talk:
    """Talk with a model, the canvas denoising before your eyes.

    Each line is a message, or a command such as /help. Answers go to standard output, all else to standard error. Lines may
    come from a file or a pipe as well.

    \b
    esdllm chat
    esdllm chat --model GSAI-ML/LLaDA-8B-Instruct --preset es-dllm-parallel
    printf 'Who are you?\\nWhat is 12 + 7?\\n' | esdllm chat
    """

    model: ModelName = None
    family: FamilyName = None
    preset: PresetName = None
    profile: ProfileName = None
    config: ConfigFile = None
    sets: Sets = None
    gen_length: GenLength = None
    block_length: BlockLength = None
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="A system message, before the conversation.")] = (
        None
    )
    saved: Annotated[
        Path | None, typer.Option("--load", metavar="FILE", help="Go on with a conversation that /save wrote.")
    ] = None
    watch: Annotated[
        bool,
        typer.Option(
            "--watch/--no-watch",
            help="Show the canvas while it is denoised: dots are masked, italics candidates (grey: skipped), green was just "
            "decided, squares end the text (hollow: perhaps).",
        ),
    ] = True
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    debug: Debug = False

    def run(self) -> None:
        """Talk until there are no more lines."""
        choice = Choice.of(self)
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


chat = command(Talk)


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
        console.print("\n/quit or Ctrl-D leaves", style="dim")
        return ""


def _piped() -> Iterator[str]:
    """Yield the lines of standard input."""
    with text_of_input() as source:
        for line in source:
            yield line.rstrip("\n")
