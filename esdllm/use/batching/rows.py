"""Prompts from a file and answers to one: JSON lines, CSV, Parquet, by extension; prompts from plain text too."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from esdllm.errors import InputError, UnavailableError, brief, installing
from esdllm.use.jsonl import json_lines
from esdllm.views import Message

__all__ = ["BadLine", "Line", "check_kind", "is_turn", "read_lines", "write_atomically", "write_rows"]

_DEPTH = 64  # brackets that may stand around a value when it is written, beyond those that the parser saw
_NO_TEXT = "it is not valid UTF-8; convert it first, say with iconv"
_EXAMPLE = '{"prompt": "Who are you?"}'


@attrs.frozen
class Line:
    """A line of the input that holds a prompt."""

    number: int
    """of the line, from 1; of a CSV file where the row begins, its head included; of a Parquet file the row's"""
    prompt: str | tuple[Message, ...]
    """a text, or a conversation"""
    id: Any = None
    """what the input calls it"""

    @property
    def shown(self) -> str:
        """The prompt's text; of a conversation its last turn."""
        return self.prompt if isinstance(self.prompt, str) else str(self.prompt[-1]["content"])


@attrs.frozen
class BadLine:
    """A line of the input that cannot be answered."""

    number: int
    """as a `Line`'s"""
    reason: str
    """what is wrong with it"""


Read = Iterator[tuple[int, "Mapping[str, Any] | str"]]
"""Numbers with what stands there: values by column, or what is wrong."""


def read_lines(path: Path) -> tuple[list[Line], list[BadLine]]:
    """Return the prompts of a file, and the lines that hold none; blank lines of JSON lines are passed over.

    Raises:
        InputError: the file cannot be read, has no column `prompt`, or is of no known kind.
        UnavailableError: it is a Parquet file and pyarrow is not installed.
    """
    reader = _kind(path, _READERS)
    good: list[Line] = []
    bad: list[BadLine] = []
    try:
        for number, found in reader(path):
            made = _line(number, found)
            good.append(made) if isinstance(made, Line) else bad.append(made)
    except OSError as error:
        raise InputError(f"cannot read the prompts {path}: {error.strerror or error}") from error
    return good, bad


def _line(number: int, found: Mapping[str, Any] | str) -> Line | BadLine:
    if isinstance(found, str):
        return BadLine(number, found)
    prompt, messages = found.get("prompt"), found.get("messages")
    if not _can_be_written(found.get("id")):
        return BadLine(number, f"its id cannot be written as JSON: {brief(found['id'])}; give a text or a number")
    if isinstance(prompt, str) and messages is None:
        return Line(number, prompt, found.get("id"))
    if prompt is None and isinstance(messages, list) and messages and all(map(is_turn, messages)):
        return Line(number, tuple(messages), found.get("id"))
    if prompt is not None and messages is not None:
        return BadLine(number, "it has both a prompt and messages; give one")
    if prompt is not None:
        return BadLine(number, f"its prompt is a {type(prompt).__name__}, not a text: {brief(prompt)}")
    return BadLine(number, f"it holds no prompt: write {_EXAMPLE}, or messages that are a list of role and content")


def _can_be_written(value: Any) -> bool:
    """Return whether a value can stand in a line of the output, which is JSON: no NaN, and not nested to the parser's limit."""
    for _ in range(_DEPTH):
        value = [value]
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def is_turn(turn: object) -> bool:
    """Return whether something read from JSON is a turn of a conversation."""
    return isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("role", "content"))


def _read_json_lines(path: Path) -> Read:
    return json_lines(path, _EXAMPLE)


def _read_text(path: Path) -> Read:
    """Yield a prompt for each line that is not blank; a newline ends a line and nothing else does."""
    for number, raw in enumerate(path.read_bytes().split(b"\n"), 1):
        if not raw.strip():
            continue
        line = raw.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8", errors="surrogateescape")
        yield number, _NO_TEXT if _has_wrong_bytes(line) else {"prompt": line}


def _read_csv(path: Path) -> Read:
    text = path.read_bytes().decode(
        "utf-8-sig", errors="surrogateescape"
    )  # so that a wrong byte spoils its own row alone
    limit = csv.field_size_limit(max(len(text), csv.field_size_limit()))
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            _check_columns(path, reader.fieldnames or ())
        except csv.Error as error:
            raise InputError(f"{path}, line 1: {error}") from error
        while (found := _csv_row(reader)) is not None:
            yield found
    finally:
        csv.field_size_limit(limit)


def _csv_row(reader: csv.DictReader[str]) -> tuple[int, Mapping[str, Any] | str] | None:
    """Return the line at which the next row begins, with its values or what is wrong with it; None at the end."""
    number = reader.line_num + 1
    try:
        row = next(reader, None)
    except csv.Error as error:
        return number, str(error)
    if row is None:
        return None
    if None in row:
        return number, "it has more fields than the head"
    if any(_has_wrong_bytes(value or "") for value in row.values()):
        return number, _NO_TEXT
    return number, row


def _has_wrong_bytes(text: str) -> bool:
    """Return whether a text that was decoded with `surrogateescape` had bytes that are not UTF-8."""
    return any("\udc80" <= letter <= "\udcff" for letter in text)


def _read_parquet(path: Path) -> Read:
    parquet = _pyarrow("parquet")
    try:
        table = parquet.read_table(path)
    except OSError as error:
        if error.errno is not None:
            raise
        raise InputError(f"{path} is no sound Parquet file: {error!s:.200}") from error
    except Exception as error:  # pyarrow raises errors of several kinds
        raise InputError(f"{path} is no Parquet file: {error!s:.200}") from error
    _check_columns(path, table.column_names)
    columns = {name: table.column(name) for name in ("prompt", "id") if name in table.column_names}
    yield from ((row + 1, _cells(columns, row)) for row in range(table.num_rows))


def _cells(columns: Mapping[str, Any], row: int) -> Mapping[str, Any] | str:
    """Return a row's values by column, or what is wrong with it."""
    try:
        return {name: _cell(column[row]) for name, column in columns.items()}
    except Exception as error:  # text that is not UTF-8, a date beyond Python's, and what else pyarrow holds
        return f"a cell of it cannot be read: {type(error).__name__}: {error!s:.80}"


def _cell(held: Any) -> Any:
    """Return a cell of a Parquet table as JSON has it: of times, decimals and the like their text."""
    arrow = _pyarrow("")
    kinds = (arrow.types.is_temporal, arrow.types.is_decimal)
    return held.cast(arrow.string()).as_py() if any(is_kind(held.type) for is_kind in kinds) else held.as_py()


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if "prompt" not in names:
        raise InputError(f"{path} has no column 'prompt'; it has {brief(list(names), 300) if names else 'none'}")
    if twice := [name for name in ("prompt", "id") if list(names).count(name) > 1]:
        raise InputError(f"{path} has more than one column {twice[0]!r}; rename all but one")


def check_kind(path: Path) -> None:
    """Return if a file of this extension can be written.

    Raises:
        InputError: the extension is not known.
        UnavailableError: it is a Parquet file and pyarrow is not installed.
    """
    if _kind(path, _WRITERS) is _parquet:
        _pyarrow("parquet")


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of like keys; the file is there as a whole or not at all."""
    write_atomically(path, _kind(path, _WRITERS)(rows))


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file that is there as a whole or not at all, whenever the process ends."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _json_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(errors="backslashreplace")


def _csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]) if rows else ["line", "prompt", "text", "tokens", "forwards"])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode(errors="backslashreplace")


def _parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    arrow, parquet = _pyarrow(""), _pyarrow("parquet")
    ids = [row["id"] for row in rows if row.get("id") is not None]
    kinds = set(map(type, ids))
    beyond = any(isinstance(one, int) and not -(2**63) <= one < 2**63 for one in ids)
    if len(kinds) > 1 or kinds & {dict, list} or beyond:  # a column has one type, of whole numbers 64 bits
        rows = [{**row, "id": _id_text(row["id"])} for row in rows]
    rows = [{key: _plain(value) for key, value in row.items()} for row in rows]
    sink = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(list(rows)), sink)
    return sink.getvalue()


def _id_text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """Return a value with half a pair of surrogates, which UTF-8 cannot hold, written as an escape."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _pyarrow(module: str) -> Any:
    try:
        import pyarrow  # only Parquet files need it
        import pyarrow.parquet
    except ImportError as error:
        raise UnavailableError(f"Parquet files need pyarrow: {installing('parquet')}") from error
    return pyarrow.parquet if module else pyarrow


_READERS: Mapping[str, Callable[[Path], Read]] = {
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
    ".txt": _read_text,
    "": _read_text,  # a pipe, such as /dev/stdin, among others
}
_WRITERS: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], bytes]] = {
    ".csv": _csv,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}


def _kind(path: Path, kinds: Mapping[str, Any]) -> Any:
    found = kinds.get(path.suffix.lower())
    if found is None:
        named, sound = path.suffix or " without an extension", ", ".join(filter(None, kinds))
        raise InputError(f"{path}: files named *{named} are not known; name a {sound}")
    return found
