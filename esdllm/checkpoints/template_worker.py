"""The process that renders chat templates, which are programs that came with a checkpoint: it may be killed at any time.

Run as a file; its arguments are the memory in bytes that it may take and the folders to import jinja2 from. It says that it is
ready with the line `{}`, reads a request per line from standard input, `{"template": text, "variables": object, "longest":
characters}`, and answers each with a line, `{"text": text}` or `{"error": kind, "reason": text}`; all of it is ASCII JSON. It
imports nothing of esdllm, so that it starts quickly.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

if __name__ == "__main__":
    sys.path += sys.argv[2:]

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

__all__ = ["answer", "render"]


class RefusedError(TemplateError):
    """What a template raises itself, with `raise_exception`."""


class TooLongError(Exception):
    """What is rendered is longer than it may be."""


class _Generation(Extension):
    """`{% generation %}`, which marks an assistant's turn for training: its content is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own way

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_kept"), [], [], body).set_lineno(line)  # a scope of its own

    def _kept(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` without the attributes of Python's own."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace`, whose names do not begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *given = args  # so that a template may name one of its own `self`
        values = dict(*given, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace's names do not begin with an underscore, as {name!r} does")


def _refuse(message: object) -> NoReturn:
    raise RefusedError(str(message))


def _to_json(
    x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Return JSON without jinja2's escapes for HTML."""
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _environment() -> ImmutableSandboxedEnvironment:
    """Return an environment that renders as transformers' `apply_chat_template` does."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals |= {"raise_exception": _refuse, "strftime_now": _now, "dict": _Dict(), "namespace": _Namespace}
    return made


@lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


def render(template: str, variables: Mapping[str, Any], longest: int) -> str:
    """Return what a template makes of its variables, at most `longest` characters.

    Raises:
        TooLongError: it would be longer.
        Exception: whatever the template comes to.
    """
    return "".join(_bounded(_compiled(template).generate(dict(variables)), longest))


def _bounded(pieces: Iterator[str], left: int) -> Iterator[str]:
    for piece in pieces:
        left -= len(piece)
        if left < 0:
            raise TooLongError
        yield piece


_KINDS: tuple[tuple[type[BaseException], str], ...] = (
    (RefusedError, "refused"),
    (TooLongError, "long"),
    (MemoryError, "memory"),
    (TemplateSyntaxError, "syntax"),
    (SyntaxError, "syntax"),
    (RecursionError, "deep"),
    (BaseException, "failed"),
)


def answer(line: str) -> dict[str, str]:
    """Return the answer to a request; never raises."""
    try:
        request = json.loads(line)
        return {"text": render(request["template"], request["variables"], request["longest"])}
    except BaseException as error:
        kind = next(kind for made, kind in _KINDS if isinstance(error, made))
        return {
            "error": kind,
            "reason": _said(error) if kind == "refused" else f"{type(error).__name__}: {_said(error)}",
        }


def _said(error: BaseException) -> str:
    with suppress(Exception):
        where = f" (line {error.lineno})" if isinstance(error, TemplateSyntaxError) else ""
        return " ".join(f"{error}"[:1000].split()) + where
    return ""


def _limit_memory(most: int) -> None:
    """Let this process have no more memory than `most` bytes, where the system can say so."""
    try:
        import resource  # not on Windows
    except ImportError:
        return
    with suppress(OSError, ValueError):  # a lower limit holds already
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's
    _limit_memory(int(sys.argv[1]))
    print("{}", flush=True)  # ready
    for line in sys.stdin:
        print(json.dumps(answer(line)), flush=True)


if __name__ == "__main__":
    _serve()
