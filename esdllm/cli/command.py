"""A command as a frozen attrs class: what it is asked, field by field, and what it does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from importlib.util import find_spec
from inspect import Parameter, Signature
from typing import Any, Protocol, get_type_hints

import attrs
from typer.core import TyperCommand

from esdllm.errors import UnavailableError, installing

__all__ = ["Command", "OptionalValues", "command", "needing"]


class Command(Protocol):
    """What a command is asked. Its class is frozen attrs; a field is an argument or an option, the docstring the help."""

    def run(self) -> None:
        """Do it."""


class OptionalValues(TyperCommand):
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


def command(asked: type[Command]) -> Callable[..., None]:
    """Return the function that typer takes as a command, from the class of what it is asked."""
    types = get_type_hints(asked, include_extras=True)
    parameters = [
        Parameter(
            field.name,
            Parameter.KEYWORD_ONLY,
            default=Parameter.empty if field.default is attrs.NOTHING else field.default,
            annotation=types[field.name],
        )
        for field in attrs.fields(asked)  # type: ignore[arg-type]  # a protocol cannot say that its classes are attrs'
    ]

    def run(**given: Any) -> None:
        asked(**given).run()

    run.__doc__ = asked.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # what inspect reads before the code's own
    return run


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
