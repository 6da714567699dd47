"""A command in two halves: a frozen attrs class of what it is asked, and one below that does it.

`esdllm.cli.options.generate.GenerateOptions` has the options and the help; `esdllm.cli.generate.Generate` is below it and
has `run`. The second is imported when the command runs, so that help and completion need no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter, Signature
from typing import Any, get_type_hints

import attrs
import typer
from typer.core import TyperCommand

from esdllm.errors import UnavailableError, installing

__all__ = ["as_command", "command", "needing"]

_ROOM, _SUFFIX = ".options.", "Options"


class _OptionalValues(TyperCommand):
    """A command whose options may stand without their value, which then is empty, where the help has it in brackets."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the words of a command line."""
        optional = {
            name for param in self.params if str(getattr(param, "metavar", "")).startswith("[") for name in param.opts
        }
        words = []
        for at, word in enumerate(args, 1):
            alone = word in optional and (at == len(args) or args[at].startswith("-"))
            words += [word, ""] if alone else [word]
        return list(super().parse_args(ctx, words))


def command(options: type) -> Callable[..., None]:
    """Return the function that typer takes as a command, from the class of its options, whose docstring is the help."""
    types = get_type_hints(options, include_extras=True)
    parameters = [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if field.default is attrs.NOTHING else field.default,
            annotation=types[field.name],
        )
        for field in attrs.fields(options)
    ]

    def run(**given: Any) -> None:
        doing = getattr(import_module(options.__module__.replace(_ROOM, ".")), options.__name__.removesuffix(_SUFFIX))
        doing(**given).run()

    run.__doc__ = options.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # what inspect reads before the code's own
    return run


def as_command(name: str, function: Callable[..., Any] | typer.Typer) -> Any:
    """Return typer's command or group, from a function or a `typer.Typer`."""
    app = function
    if not isinstance(app, typer.Typer):
        app = typer.Typer(rich_markup_mode=None, add_completion=False)
        app.command(name, cls=_OptionalValues)(function)
    built = typer.main.get_command(app)
    built.name = name
    built.params = [param for param in built.params if param.name not in ("install_completion", "show_completion")]
    return built


def needing(packages: Sequence[str], extra: str, run: Callable[..., None]) -> Callable[..., None]:
    """Return a command that needs packages; where one is missing, its help and its error say how to install the extra."""
    missing = [package.replace("_", "-") for package in packages if not find_spec(package)]
    if not missing:
        return run

    @wraps(run)
    def refuse(*_: Any, **__: Any) -> None:
        raise UnavailableError(f"this command needs {' and '.join(missing)}: {installing(extra)}")

    refuse.__doc__ = f"Needs {installing(extra)}. {(run.__doc__ or '').lstrip()}"
    return refuse
