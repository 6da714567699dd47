"""What the commands share: loading a model, files, the consoles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import torch
import typer
from rich.console import Console
from rich.text import Text

from esdllm.checkpoints.dtypes import bfloat16_is_slow
from esdllm.checkpoints.loading import shipped_checkpoints
from esdllm.config import DEFAULT_MODEL
from esdllm.errors import CheckpointError, InputError
from esdllm.plugins.catalogue import Catalogue


def default_model(catalogue: Catalogue) -> str:
    """Return the name of the default checkpoint, or of the first that ships with a plugin.

    Raises:
        CheckpointError: none does.
    """
    shipped = shipped_checkpoints(catalogue)
    if not shipped:
        raise CheckpointError("no plugin ships a checkpoint; name one with --model, say GSAI-ML/LLaDA-8B-Instruct")
    return DEFAULT_MODEL if DEFAULT_MODEL in shipped else next(iter(shipped))


SLOW_BFLOAT16 = (
    "bfloat16 is several times slower than float32 on this processor; --compute fp16 is faster in as much memory (on x86), "
    "--dtype float32 in twice as much"
)


def hint_dtype(device: torch.device, dtype: torch.dtype) -> None:
    """Say on standard error if a dtype is slow on a device."""
    if bfloat16_is_slow(device, dtype):
        stderr().print(f"hint: {SLOW_BFLOAT16}", style="yellow", soft_wrap=True)


def check_writable(path: Path | None) -> None:
    """Return if a file can be written, which long work should know before it begins; its folder is made.

    Raises:
        InputError: it cannot.
    """
    if path is None or (path.exists() and not path.is_file() and not path.is_dir()):
        return  # a pipe is opened once
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        path.open("ab").close()
        if new:
            path.unlink()
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; name another file") from error


class _Wrapping(Console):
    """A console that wraps lines at words on a terminal, and elsewhere leaves those whole that are printed with soft_wrap."""

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """Print; see rich's `Console.print`."""
        super().print(*objects, soft_wrap=bool(soft_wrap) and not self.is_terminal, **options)


def stdout() -> Console:
    """Return the console of results."""
    return _Wrapping(highlight=False)


def stderr() -> Console:
    """Return the console of everything else."""
    return _Wrapping(stderr=True, highlight=False)


def print_answer(text: str) -> None:
    """Print a text on standard output, as it is; on a terminal its lines are wrapped at words."""
    console = stdout()
    console.print(Text(text)) if console.is_terminal else typer.echo(text)


def print_json(value: Any, indent: int | None = 2) -> None:
    """Print a value as JSON on standard output."""
    typer.echo(json.dumps(value, indent=indent, ensure_ascii=False, default=str))


def counted(number: int, one: str, many: str | None = None) -> str:
    """Return a number and its noun: 1 forward, 2 forwards."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def shown(value: Any) -> str:
    """Return an option's value as one would write it in TOML."""
    if value is attrs.NOTHING:
        return "(required)"
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)
