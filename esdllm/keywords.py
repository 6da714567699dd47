"""Keyword arguments that a call does not take: refused with what other tools' names are called here."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from esdllm.errors import ConfigError, foreign, known

__all__ = ["hinting"]

P = ParamSpec("P")
R = TypeVar("R")


def hinting(call: Callable[P, R]) -> Callable[P, R]:
    """Return `call`, which refuses a keyword that it does not take with a hint.

    Raises (by what is returned):
        ConfigError: another tool has a setting of that name; says what it is called here.
        TypeError: nobody has, as Python raises; says which name is near.
    """
    names = [name for name in inspect.signature(call).parameters if name != "self"]

    @wraps(call)
    def checked(*given: P.args, **named: P.kwargs) -> R:
        for name in named:
            if name not in names:
                kind = ConfigError if foreign(name) else TypeError
                raise kind(f"{call.__qualname__} takes no '{name}'; {known(name, names)}")
        return call(*given, **named)

    return checked
