"""The `esdllm` command."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from esdllm.allocator import keep_freed_memory
from esdllm.cli import (
    analyze,
    bench,
    chat,
    config,
    conformance,
    doctor,
    evaluate,
    explain,
    generate,
    harness,
    infill,
    new_plugin,
    plugins,
    trace,
    tune,
)
from esdllm.errors import EsdllmError

__all__ = ["app", "main"]

app = typer.Typer(
    name="esdllm",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command in (
    generate.generate,
    chat.chat,
    infill.infill,
    explain.explain,
    trace.trace,
    plugins.plugins,
    doctor.doctor,
    conformance.conformance,
    tune.tune,
):
    app.command()(_command)
app.command("eval")(evaluate.eval_)
app.command("analyze")(analyze.analyze_)
app.add_typer(bench.app)
app.add_typer(config.app)
app.command("new-plugin")(new_plugin.new_plugin)
app.command("lm-eval", add_help_option=False, context_settings=harness.EVERYTHING)(harness.lm_eval)


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 where cases failed, 2 for an error that the user can mend.

    The one place where errors become a line on standard error; `--debug` lets the traceback through.
    """
    if arguments is None:  # the process is the command's own
        keep_freed_memory()
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return int(app(words, prog_name="esdllm", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except Exception as error:
        if (message := _message(error)) is None:
            raise
        if "--debug" in words:
            traceback.print_exception(error)
        typer.echo(f"error: {message}", err=True)
        return 2


def _message(error: Exception) -> str | None:
    """Return what to say of an error that the user can mend, in one line; None if it is a fault of ours."""
    if isinstance(error, EsdllmError):
        return " ".join(str(error).split())
    if hasattr(error, "format_message"):  # wrong usage; typer keeps the class to itself
        context = getattr(error, "ctx", None)
        hint = f" (see {context.command_path} --help)" if context else ""
        said = error.format_message().rstrip(".")
        if said.startswith("Got unexpected extra argument") and context and context.info_name == "generate":
            said += "; put the prompt in quotes"
        return f"{said}{hint}"
    return None
