"""The errors that esdllm raises: each says what is wrong, the value, and what would do."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable

from esdllm.names import called_here

__all__ = [
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "ContextError",
    "EsdllmError",
    "InputError",
    "NumericsError",
    "PluginError",
    "QueueFullError",
    "TokenizerError",
    "UnavailableError",
]

_MANY = 12  # names that are listed one by one


class EsdllmError(Exception):
    """Base of all errors that a caller or a user can mend."""


class ConfigError(EsdllmError, ValueError):
    """A setting that is unknown, out of range, or contradicts another."""


class PluginError(EsdllmError):
    """A plugin that cannot be imported, clashes with another, implements no known hook, or whose component misbehaves."""

    def __init__(self, message: str = "", plugin: str = "") -> None:
        super().__init__(message)
        self.plugin = plugin
        """the plugin at fault, where leaving it out with ESDLLM_DISABLE_PLUGINS mends it"""


class CheckpointError(EsdllmError, ValueError):
    """A folder that is no checkpoint, or one that this version cannot load."""


class TokenizerError(CheckpointError):
    """A checkpoint without a tokenizer, or with one that cannot be read; its model still takes and gives token ids."""


class InputError(EsdllmError, ValueError):
    """A prompt, canvas or mask that cannot be decoded."""


class ContextError(InputError):
    """A prompt that, with what is to be generated, is longer than the model's context or than a slot."""


class UnavailableError(EsdllmError, RuntimeError):
    """A device, dtype or backend that this machine does not offer."""


class NumericsError(EsdllmError, ArithmeticError):
    """Numbers that no decision can be based on: NaN among the logits."""


class QueueFullError(EsdllmError, RuntimeError):
    """A request that cannot wait, since as many wait already as may."""

    def __init__(self, message: str = "", retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """seconds after which there should be room"""


class ClosedError(EsdllmError, RuntimeError):
    """A request to what is closed, or lets what runs come to an end and takes nothing new."""


def installing(extra: str) -> str:
    """Return the command that installs an optional extra, in quotes so that every shell takes it."""
    return f'pip install "esdllm[{extra}]"'


def brief(value: object, most: int = 80) -> str:
    """Return a value as Python writes it, in a line, cut where that is longer than `most` characters; never raises."""
    try:
        text = " ".join(repr(value).split("\n"))
    except Exception:  # a whole number of too many digits, a value of somebody's own class
        text = f"a {type(value).__name__} that cannot be written"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def known(name: str, names: Iterable[str]) -> str:
    """Return the tail of an error about an unknown `name`: the nearest of `names`, and all of them."""
    names = sorted(names)
    alike = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    if not alike and (there := called_here(name)):
        return f"{there}; known: {', '.join(names)}"
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}known: {', '.join(grouped(names, name))}" if names else "there are none"


def grouped(names: Iterable[str], near: str = "") -> list[str]:
    """Return names sorted; where they are many, those with a slash as one for each beginning: `es-dllm/... (20)`.

    Only those are told that begin as `near` does, up to a slash of it, where any does.
    """
    names = sorted(names)
    parts = near.split("/")
    beginnings = ["/".join([*parts[:count], ""]) for count in range(len(parts), 0, -1)] + [""]
    start = next(start for start in beginnings if not start or any(name.startswith(start) for name in names))
    found = [name for name in names if name.startswith(start)]
    if len(found) <= _MANY:
        return found
    heads = [
        f"{start}{head}/..." if slash else name
        for name in found
        for head, slash, _ in [name[len(start) :].partition("/")]
    ]
    return [f"{head} ({number})" if head.endswith("/...") else head for head, number in Counter(heads).items()]
