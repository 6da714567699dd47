"""The typer app of the `esdllm` command, and what becomes of its errors."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from esdllm.cli.completing import take_apart
from esdllm.cli.group import Commands
from esdllm.cli.usage import told_usage
from esdllm.config.project import DEBUG_VARIABLE
from esdllm.errors import EsdllmError
from esdllm.runtime.allocator import keep_freed_memory

__all__ = ["app", "run"]

_LONGEST = 4000  # characters of an error

app = typer.Typer(
    name="esdllm",
    cls=Commands,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"esdllm {version('esdllm')}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def esdllm(
    context: typer.Context,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Decode masked diffusion language models, computing only the positions that matter.

    \b
    esdllm generate "Sort these numbers: 31, 4, 15." --watch
    esdllm explain --preset es-dllm
    esdllm plugins importance
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    0; 1 where cases failed; 2 for an error that the user can mend; 3 for one that nobody foresaw; 130 for Ctrl-C; 141 where
    nobody reads the output any more. The one place where errors become a line on standard error; `--debug` and the variable
    ESDLLM_DEBUG show the traceback too.
    """
    if arguments is None:  # the process is the command's own
        keep_freed_memory()
    words = sys.argv[1:] if arguments is None else list(arguments)
    if os.environ.get("_ESDLLM_COMPLETE"):
        take_apart(os.environ)
    try:
        return int(app(words, prog_name="esdllm", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except BrokenPipeError:
        if arguments is None:  # what is still to be written goes nowhere, and Python's end has nothing to say of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a library that is written in Rust is no Exception
        if "--debug" in words or os.environ.get(DEBUG_VARIABLE, "").strip():
            traceback.print_exception(error)
        message = _message(error, words)
        typer.echo(f"error: {_cut(message or _unforeseen(error))}", err=True)
        return 2 if message else 3


def _message(error: BaseException, words: Sequence[str]) -> str | None:
    """Return what to say of an error that the user can mend; None if it is a fault of ours or of a library."""
    if isinstance(error, EsdllmError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror}{where}"
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "you tried to allocate" in str(error)
    ):
        return "this does not fit into memory; give a smaller batch, a shorter canvas, or see `esdllm doctor`"
    if isinstance(error, Exception) and hasattr(error, "format_message"):  # typer keeps the class to itself
        return told_usage(error, words)
    return None


def _unforeseen(error: BaseException) -> str:
    told = next(iter(str(error).splitlines()), "")
    return (
        f"unforeseen {type(error).__name__}{': ' if told else ''}{told:.300}; `--debug` or {DEBUG_VARIABLE}=1 shows the "
        f"traceback: please report it with that, and with esdllm {version('esdllm')}, where esdllm's issues are kept"
    )


def _cut(message: str) -> str:
    """Return a message in one line of bearable length."""
    line = " ".join(message.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 1]}…"
