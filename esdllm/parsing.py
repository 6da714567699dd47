"""JSON and TOML that others wrote: whatever is wrong with a text is one short ValueError.

Python's parsers raise besides: RecursionError where brackets stand in each other a thousand deep, and a ValueError of its own
where a whole number has more digits than `sys.get_int_max_str_digits` allows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TOMLDecodeError = tomllib.TOMLDecodeError
"""What `parse_toml` raises of a text that is not TOML; other ValueErrors are of TOML that cannot be held."""

__all__ = ["TOMLDecodeError", "parse_json", "parse_toml"]


def parse_json(text: bytes | str) -> Any:
    """Return what a JSON text holds; bytes are UTF-8, with a byte order mark or without.

    Raises:
        ValueError: it is not JSON; says in a few words why not.
    """
    return _parsed(json.loads, _decoded(text))


def parse_toml(text: bytes | str) -> dict[str, Any]:
    """Return the table that a TOML text holds; bytes are UTF-8, with a byte order mark or without.

    Raises:
        ValueError: it is not TOML; says in a few words why not.
    """
    found: dict[str, Any] = _parsed(tomllib.loads, _decoded(text))
    return found


def _decoded(text: bytes | str) -> str:
    if isinstance(text, str):
        return text
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not valid UTF-8 at byte {error.start}") from None  # whose repr holds the whole text


def _parsed(parse: Callable[[str], Any], text: str) -> Any:
    try:
        return parse(text)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    except (json.JSONDecodeError, tomllib.TOMLDecodeError):
        raise
    except ValueError:
        raise ValueError(f"it has a number of more than {sys.get_int_max_str_digits()} digits") from None
