"""`esdllm new-plugin`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

import attrs
import typer

from esdllm.cli.options.new_plugin import NewPluginOptions
from esdllm.cli.plugin_kinds import KINDS, Kind
from esdllm.errors import ConfigError, InputError, known
from esdllm.hookspecs import INTERFACE
from esdllm.plugins.catalogue import Catalogue
from esdllm.plugins.commands import brought_commands

__all__ = ["write_plugin"]

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 32


_BESIDE: Mapping[str, tuple[str, ...]] = {"family": ("safetensors>=0.4.5",), "command": ("typer>=0.16",)}
"""packages that a kind needs beside esdllm"""
_OF_IT = (
    "the component, and the hook that offers it. A component's fields are its options; what their `help`\n"
    "says is what `esdllm plugins {section}` shows."
)
_COMMAND_OF_IT = (
    "the command, and the hook that offers it. Its parameters are the command's arguments and options, as typer\n"
    "takes them; its docstring is what `esdllm --help` shows."
)


@attrs.frozen(kw_only=True)
class NewPlugin(NewPluginOptions):
    """Writes the package."""

    def run(self) -> None:
        """Write it, and say what is next."""
        folder = write_plugin(self.name, self.kind, self.to or Path())
        typer.echo(str(folder))
        typer.echo(f"next: pip install -e '{folder}[dev]', then pytest {folder}", err=True)


def write_plugin(name: str, kind: str, to: Path) -> Path:
    """Write the package of a component into a new folder of `to`, and return the folder.

    Raises:
        ConfigError: an unknown kind, a name that cannot be one, or one that is taken.
        InputError: the folder exists, or cannot be written.
    """
    if kind not in KINDS:
        raise ConfigError(f"unknown kind '{kind}'; {known(kind, KINDS)}")
    name = name.removeprefix("esdllm-")
    chosen, words = KINDS[kind], _words(name, KINDS[kind].section)
    folder = to / words["distribution"]
    try:
        folder.mkdir(parents=True)
        for path, text in _files(kind, chosen, words).items():
            (folder / path).write_text(text, encoding="utf-8")
    except FileExistsError as error:
        raise InputError(f"{folder} exists already; choose another name, or another folder with --to") from error
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; choose another folder with --to") from error
    return folder


def _words(name: str, section: str) -> dict[str, str]:
    """Return the names of all that is written.

    Raises:
        ConfigError: the name cannot be one, or is taken.
    """
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise ConfigError(
            f"'{name}' cannot be a name; give lower-case letters and digits, words joined by hyphens, a letter first, at most "
            f"{_LONGEST} characters, such as {_like(name)}"
        )
    module = f"esdllm_{name.replace('-', '_')}"
    if find_spec(module) is not None:
        raise ConfigError(f"there is a module '{module}' already; choose another name than '{name}'")
    if origin := _command_origin(name) if section == "command" else _component_origin(section, name):
        raise ConfigError(f"{section} '{name}' is offered already, by {origin}; choose another name")
    return {"name": name, "module": module, "distribution": f"esdllm-{name}"}


def _component_origin(section: str, name: str) -> str:
    catalogue = Catalogue.load()
    return str(catalogue.entry(section, name).origin) if name in catalogue.names(section) else ""


def _command_origin(name: str) -> str:
    from esdllm.cli.app import app  # of which this module is a part

    group: Any = typer.main.get_command(app)
    brought = brought_commands(group.commands).commands
    return "esdllm itself" if name in group.commands else str(brought[name].origin) if name in brought else ""


def _like(name: str) -> str:
    """Return a name that would do, as like the one given as can be."""
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-0123456789")[:_LONGEST].strip("-")
    return found or "nearby"


def _files(kind: str, chosen: Kind, words: Mapping[str, str]) -> dict[str, str]:
    """Return the package's files by name."""
    made = _made(kind, words["name"])
    values = {
        **words,
        "made": made,
        "kind": chosen.section,
        "what": chosen.what,
        "summary": chosen.summary,
        "check": chosen.check,
        "of_it": _COMMAND_OF_IT if kind == "command" else _OF_IT.format(section=chosen.section),
        "held": f"The tests hold it to the contract of its kind, `esdllm.testing.{chosen.check}`."
        if chosen.check
        else "The tests call it as Python and as `esdllm` do.",
        "call": f"{chosen.check}({_argument(kind, made)})",
        "dependencies": ", ".join(f'"{package}"' for package in ("esdllm", *_BESIDE.get(kind, ()))),
        "interface": str(INTERFACE),
        "try_it": _try_it(kind, chosen.section, words["name"]),
    }
    named = {
        "pyproject.toml": "pyproject.toml",
        "README.md": "README.md",
        f"{words['module']}.py": kind,
        f"test_{words['module']}.py": "command_test" if kind == "command" else "test",
    }
    found = {path: Template(_template(name)).substitute(values) for path, name in named.items()}
    if kind == "family":
        test = found[f"test_{words['module']}.py"]
        found[f"test_{words['module']}.py"] = test.replace(f"import {made}", f"import TINY, {made}")
    return found


def _made(kind: str, name: str) -> str:
    """Return what the component is called in its module."""
    suffix = KINDS[kind].suffix
    if kind in ("preset", "command"):
        made = name.replace("-", "_")
        return made.upper() if kind == "preset" else made.removesuffix(suffix) + suffix
    return "".join(word.capitalize() for word in name.split("-")).removesuffix(suffix) + suffix


def _argument(kind: str, made: str) -> str:
    return {"preset": made, "family": f"{made}(), TINY"}.get(kind, f"{made}()")


def _template(name: str) -> str:
    return (files("esdllm.cli") / "templates" / f"{name}.template").read_text(encoding="utf-8")


def _try_it(kind: str, section: str, name: str) -> str:
    """Return a command that uses the component."""
    if kind == "preset":
        return f'esdllm generate "Who are you?" --preset {name}'
    if kind == "command":
        return f'esdllm {name} "Who are you?"'
    if kind == "family":
        return "esdllm plugins model"
    if kind == "observer":
        return f'esdllm generate "Who are you?" --set \'observers=["{name}"]\''
    return f'esdllm generate "Who are you?" --set {section}={name}'
