"""Keyword arguments that a call does not take: refused with what other tools' names are called here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from esdllm.errors import ConfigError, known
from esdllm.names import called_here

__all__ = ["hinting"]

C = TypeVar("C", bound=Callable[..., Any])


def hinting(call: C) -> C:
    """Return a function or class, which refuses a keyword that it does not take with a hint.

    Raises (by what is returned):
        ConfigError: another tool has a setting of that name, or another call here; says what it is called and where it belongs.
        TypeError: nobody has, as Python raises; says which name is near.
    """
    if isinstance(call, type):
        made: Any = call
        made.__init__ = _checked(made.__init__, call.__qualname__)
        return cast(C, call)
    return cast(C, _checked(call, call.__qualname__))


def _checked(call: Callable[..., Any], who: str) -> Callable[..., Any]:
    names = [name for name in inspect.signature(call).parameters if name not in ("self", "cls")]

    @wraps(call)
    def checked(*given: Any, **named: Any) -> Any:
        for name in named:
            if name not in names:
                kind = ConfigError if called_here(name) else TypeError
                raise kind(f"{who} takes no '{name}'; {known(name, names)}")
        return call(*given, **named)

    return checked
