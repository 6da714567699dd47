"""The prompts of a command line: its words, and those of a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from esdllm.errors import InputError

__all__ = ["read_prompts", "text_of_input"]


def read_prompts(words: Sequence[str], file: Path | None) -> list[str]:
    """Return the prompts of a command line: its words, then a file's.

    Raises:
        InputError: there is none; the file cannot be read; a line of it holds no prompt.
    """
    texts = [*words, *(_prompts_of(file) if file else ())]
    if not texts:
        raise InputError(
            'there is no prompt; give some in quotes, such as "Sort 3 1 2." "Who are you?", or a file of them with '
            "--prompts FILE"
        )
    return texts


@contextmanager
def text_of_input() -> Iterator[TextIO]:
    """Give standard input, which is text.

    Raises:
        InputError: it is not; says where.
    """
    try:
        yield sys.stdin
    except UnicodeDecodeError as error:
        raise InputError(
            f"standard input is not valid {error.encoding} at byte {error.start}; convert it first, say with iconv"
        ) from error


def _prompts_of(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read the prompts {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not valid UTF-8 at byte {error.start}; convert it first, say with iconv"
        ) from error
    texts = [
        _prompt(line, f"{file}, line {number}") if file.suffix == ".jsonl" else line
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not texts:
        raise InputError(f"{file} holds no prompt; write one a line")
    return texts


def _prompt(line: str, where: str) -> str:
    try:
        read = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    if not isinstance(read, dict) or not isinstance(read.get("prompt"), str):
        raise InputError(f'{where} is {line.strip():.60}; write an object such as {{"prompt": "Who are you?"}}')
    return str(read["prompt"])
