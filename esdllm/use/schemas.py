"""JSON schemas as patterns, for as much as a pattern can say of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from esdllm.errors import InputError, brief
from esdllm.use.automata import core

__all__ = ["pattern_of_schema"]

_TOLD = {"$comment", "$id", "$schema", "default", "deprecated", "description", "examples", "title"}
_OF_ONE = {"items"}
_OF_LIST = {"anyOf", "prefixItems"}
_OF_NAMES = {"properties", "$defs", "definitions"}
_PLAIN = {"type", "required", "enum", "const", "$ref", "minItems", "maxItems", "minLength", "maxLength", "format"}
_KEPT = _TOLD | _OF_ONE | _OF_LIST | _OF_NAMES | _PLAIN | {"additionalProperties"}


def pattern_of_schema(schema: str | Mapping[str, Any]) -> str:
    """Return a pattern, as outlines-core writes it, of JSON texts that a schema admits, if not of all of them.

    Properties come in the schema's order and no others, references nest three deep, strings have no \\u escapes.

    Raises:
        InputError: it is no schema, or has a keyword that a pattern would not keep to; names it.
        UnavailableError: outlines-core is not installed.
    """
    core()
    from outlines_core.json_schema import build_regex_from_schema

    try:
        read = json.loads(schema) if isinstance(schema, str) else schema
    except ValueError as error:
        raise InputError(f"{brief(schema)} is no JSON: {error}") from error
    for keyword in _keywords(read):
        if keyword not in _KEPT:
            raise InputError(f"no pattern keeps to the keyword {brief(keyword)} of a schema; leave it out")
    try:
        return str(build_regex_from_schema(json.dumps(read)))
    except (TypeError, ValueError) as error:
        raise InputError(f"{brief(schema)} is no schema that a pattern can say: {error}") from error


def _keywords(schema: Any) -> Iterator[str]:
    """Yield the keywords of a schema and of all within it."""
    if not isinstance(schema, Mapping):
        raise InputError(f"a schema is an object, such as {{'type': 'integer'}}, not {brief(schema)}")
    for keyword, value in schema.items():
        yield keyword
        within: Any = ()
        if keyword in _OF_ONE:
            within = (value,)
        elif keyword in _OF_LIST:
            within = value
        elif keyword in _OF_NAMES:
            within = value.values() if isinstance(value, Mapping) else (value,)
        for each in within:
            yield from _keywords(each)
