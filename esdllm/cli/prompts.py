"""The prompts of a command line: its words, and those of a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from esdllm.errors import InputError
from esdllm.use.batching.rows import Line, read_lines

__all__ = ["read_prompt", "read_prompts", "text_of_input"]


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
    """Return the prompts of a file of any kind that `esdllm generate --input` reads; here every line must hold one."""
    good, bad = read_lines(file)
    for line in bad:
        raise InputError(f"{file}, line {line.number}: {line.reason}")
    if not good:
        raise InputError(f"{file} holds no prompt; write one per line")
    return [_text_of(line, file) for line in good]


def _text_of(line: Line, file: Path) -> str:
    if not isinstance(line.prompt, str):
        raise InputError(f"{file}, line {line.number}: it is a conversation; this command takes prompts that are texts")
    return line.prompt
