"""Bodies as attrs classes: what each field takes, and which fields are refused by name.

A null is a field that was not given. Nothing is ignored: a field that is not of the class is refused, unless it is one
that cannot be served and has the one value that asks for nothing (`frequency_penalty` 0).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import attrs

from esdllm.checkpoints.text import check_unicode
from esdllm.errors import InputError, brief, known
from esdllm.serving.api.errors import ApiError, invalid

__all__ = ["Inert", "Reader", "field", "flag", "items", "mapping", "number", "structured", "text", "whole"]

T = TypeVar("T")
_LONGEST = 80  # characters of a name that are told, and looked for among the known ones
Reader = Callable[[Any, str], Any]
"""returns what a field's value says, given the field's path for the error"""


class Inert(NamedTuple):
    """A field that cannot be served, but has values that ask for nothing."""

    values: Sequence[Any] = ()
    instead: str = "leave it out"


def field(read: Reader, default: Any = None) -> Any:
    """Return a field of a body. Without a value it is `default`; attrs.NOTHING: it must be given."""
    return attrs.field(default=default, metadata={"read": read})


def structured(kind: type[T], given: Any, path: str = "", inert: Mapping[str, Inert] | None = None) -> T:
    """Return an object's fields as `kind` has them; of those that are `inert`, none.

    Raises:
        ApiError: a field is unknown, missing, cannot be served, or has a value that it cannot have.
    """
    if not isinstance(given, dict):
        raise invalid(path, f"{brief(given)} is no object")
    fields = {one.name: one for one in attrs.fields(kind)}  # type: ignore[arg-type]  # attrs', as all bodies are
    prefix = f"{path}." if path else ""
    values = {name: value for name, value in given.items() if value is not None}
    for name in values:
        if name not in fields:
            _check_inert(name[:_LONGEST], values[name], prefix + name[:_LONGEST], inert or {}, fields)
    for name, one in fields.items():
        if one.default is attrs.NOTHING and name not in values:
            raise invalid(prefix + name, "it is missing, and must be given", "missing_required_parameter")
    return kind(
        **{name: one.metadata["read"](values[name], prefix + name) for name, one in fields.items() if name in values}
    )


def _check_inert(name: str, value: Any, path: str, inert: Mapping[str, Inert], fields: Mapping[str, Any]) -> None:
    if name not in inert:
        raise invalid(path, f"there is no such field; {known(name, fields)}", "unknown_parameter")
    values, instead = inert[name]
    if not any(value == one and isinstance(value, bool) is isinstance(one, bool) for one in values):
        other = f", or give {' or '.join(json.dumps(one) for one in values)}" if values else ""
        raise invalid(path, f"{brief(value)} cannot be served; {instead}{other}", "unsupported_parameter")


def text(value: Any, path: str) -> str:
    """Return a text."""
    if not isinstance(value, str):
        raise invalid(path, f"{brief(value)} is no text")
    try:
        check_unicode(path, value)
    except InputError as error:
        raise ApiError(400, str(error), "invalid_unicode", path) from None
    return value


def flag(value: Any, path: str) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise invalid(path, f"{brief(value)} is neither true nor false")
    return value


def whole(least: int, most: int) -> Reader:
    """Return the reader of a whole number in a range, its ends included."""

    def read(value: Any, path: str) -> int:
        if type(value) is not int or not least <= value <= most:
            raise invalid(path, f"{brief(value)} is no whole number from {least} to {most}")
        return value

    return read


def number(least: float, most: float, above: bool = False) -> Reader:
    """Return the reader of a number in a range, its ends included; the lower one not if it must be `above`."""

    def read(value: Any, path: str) -> float:
        if type(value) not in (int, float) or not (least < value <= most or (value == least and not above)):
            raise invalid(path, f"{brief(value)} is no number {'above' if above else 'from'} {least:g} to {most:g}")
        return float(value)

    return read


def items(read: Reader, least: int = 0, most: int | None = None) -> Reader:
    """Return the reader of a list."""

    def listed(value: Any, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list):
            raise invalid(path, f"{brief(value)} is no list")
        if len(value) < least or (most is not None and len(value) > most):
            raise invalid(
                path, f"{len(value)} of them; give {f'at least {least}' if len(value) < least else f'at most {most}'}"
            )
        return tuple(read(one, f"{path}[{index}]") for index, one in enumerate(value))

    return listed


def mapping(read: Reader) -> Reader:
    """Return the reader of an object of any names."""

    def mapped(value: Any, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise invalid(path, f"{brief(value)} is no object")
        return {text(name, path): read(one, f"{path}.{name}") for name, one in value.items()}

    return mapped
