"""The one door to parsers that others wrote (tokenizers, template engines): what they raise leaves as an error of esdllm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from esdllm.errors import EsdllmError

__all__ = ["reason", "translated"]

_LONGEST = 300


@contextmanager
def translated(kind: type[EsdllmError], doing: str) -> Iterator[None]:
    """Raise what somebody else's code raises within the block as `kind`: `doing`, then the reason in a line.

    Rust's panics are among them, which Python's bindings raise as BaseException. Errors of esdllm pass as they are, and so
    do a Ctrl-C and an exit.
    """
    try:
        yield
    except (EsdllmError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise kind(f"{doing}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return what an error says, in a line of bounded length; never raises."""
    try:
        said = " ".join(str(error).split())
    except Exception:  # a message that cannot be written
        said = ""
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
