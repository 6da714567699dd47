"""A mkdocs hook: writes the reference of the command line from the commands themselves, so that it cannot go stale.

A page says where it goes with the line `<!-- commands -->`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from esdllm.cli.app import app

_MARK = "<!-- commands -->"
_TWICE = re.compile(r"\[\[([^\[\]]*)\]\]")  # an argument whose own name has brackets


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page's Markdown with every command written out."""
    return markdown.replace(_MARK, reference()) if _MARK in markdown else markdown


def reference() -> str:
    """Return the section of every command, in the order of the help."""
    return "\n\n".join(section(name, command) for name, command in commands())


def commands() -> Iterator[tuple[str, Any]]:
    """Yield the full name of every command, groups before their members."""
    yield from _below("esdllm", typer.main.get_command(app))


def section(name: str, command: Any) -> str:
    """Return one command's heading, words, examples and options."""
    context = typer.Context(command, info_name=name)
    usage = _TWICE.sub(r"[\1]", " ".join([name, *command.collect_usage_pieces(context)]))
    parts = [f"## `{name}`", f"```text\n{usage}\n```", *_words(command.help or "")]
    for title, kind in (("argument", "argument"), ("option", "option")):
        rows = [_row(param) for param in _shown(command) if param.param_type_name == kind]
        if rows:
            parts.append("\n".join([f"| {title} | what it is |", "| --- | --- |", *rows]))
    return "\n\n".join(parts)


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield name, command
    if hasattr(command, "list_commands"):
        context = typer.Context(command, info_name=name)
        for member in command.list_commands(context):
            yield from _below(f"{name} {member}", command.get_command(context, member))


def _shown(command: Any) -> list[Any]:
    return [param for param in command.params if not getattr(param, "hidden", False)]


def _words(text: str) -> Iterator[str]:
    """Yield the paragraphs of a help text; what a form of feed keeps as it is becomes code."""
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("\b"):
            yield f"```bash\n{paragraph.removeprefix(chr(8)).strip()}\n```"
        else:
            yield _escaped(" ".join(paragraph.split()))


def _row(param: Any) -> str:
    shown = " ".join(f"`{name}`" for name in _names(param))
    return f"| {shown} | {_escaped(param.help or '')}{_default(param)}{_variable(param)} |"


def _names(param: Any) -> list[str]:
    """Return an option's names and what follows them, or what stands for an argument."""
    follows = [param.metavar] if param.metavar else []
    if param.param_type_name == "argument":
        return follows or [param.name.upper()]
    return [*param.opts, *param.secondary_opts, *follows]


def _default(param: Any) -> str:
    """Return a default that the help does not tell."""
    told = "[" in (param.help or "")
    nothing = param.default in (None, "", (), []) or isinstance(param.default, bool) or callable(param.default)
    return "" if told or nothing else f" Default: `{param.default}`."


def _variable(param: Any) -> str:
    return f" Environment: `{param.envvar}`." if getattr(param, "envvar", None) else ""


def _escaped(text: str) -> str:
    for plain, written in (("|", "\\|"), ("<", "&lt;"), ("*", "\\*"), ("[", "\\[")):
        text = text.replace(plain, written)
    return text
