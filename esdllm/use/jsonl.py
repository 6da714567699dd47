"""JSON lines: a file with one object per line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from esdllm.errors import InputError
from esdllm.parsing import parse_json

__all__ = ["json_lines", "sound_json_lines"]


def json_lines(path: Path, example: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield each line's number, from 1, with its object or else with what is wrong with it, a text.

    A newline ends a line and nothing else does: U+2028, at which `str.splitlines` cuts too, may stand within a text. Blank lines
    and a byte order mark are passed over. `example` is an object that would do.

    Raises:
        OSError: the file cannot be read.
    """
    for number, raw in enumerate(path.read_bytes().split(b"\n"), 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            if not line.strip():
                continue
            found = parse_json(line)
        except UnicodeDecodeError as error:
            yield number, f"it is not valid UTF-8 at byte {error.start}"
        except ValueError as error:
            yield number, f"it is not JSON: {error}"
        else:
            yield number, found if isinstance(found, dict) else f"it is no object; write {example}"


def sound_json_lines(path: Path, what: str, example: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each object stands, as "FILE, line N", with the object; `what` the file holds is for the error.

    Raises:
        InputError: the file cannot be read; a line is no object.
    """
    try:
        for number, found in json_lines(path, example):
            where = f"{path}, line {number}"
            if isinstance(found, str):
                raise InputError(f"{where}: {found}")
            yield where, found
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror or error}") from error
