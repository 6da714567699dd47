"""The prompts of a command line: its words, and those of a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from esdllm.errors import InputError
from esdllm.use.jsonl import sound_json_lines

__all__ = ["read_prompt", "read_prompts", "text_of_input"]

_EXAMPLE = '{"prompt": "Who are you?"}'


def read_prompt(word: str) -> str:
    """Return the prompt that a command was given: the word itself, or standard input's text if it is `-`.

    Raises:
        InputError: standard input is no text.
    """
    if word != "-":
        return word
    with text_of_input() as source:
        return source.read().removesuffix("\n")


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
    if file.suffix.lower() == ".jsonl":
        texts = [_prompt(read, where) for where, read in sound_json_lines(file, "prompts", _EXAMPLE)]
    else:
        texts = [line for line in _text(file).split("\n") if line.strip()]
    if not texts:
        raise InputError(f"{file} holds no prompt; write one a line")
    return texts


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read the prompts {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{file} is not valid UTF-8 at byte {error.start}; convert it first, say with iconv"
        ) from error


def _prompt(read: Mapping[str, Any], where: str) -> str:
    prompt = read.get("prompt")
    if not isinstance(prompt, str):
        held = json.dumps(read, ensure_ascii=False)
        raise InputError(f"{where} is {held:.60}; write an object such as {_EXAMPLE}")
    return prompt
