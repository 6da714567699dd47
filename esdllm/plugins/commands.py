"""The commands that packages bring to `esdllm`, by the hook `esdllm_commands`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import attrs

from esdllm.config.project import DISABLE_VARIABLE
from esdllm.errors import PluginError, brief
from esdllm.plugins.loader import BrokenPlugin, Origin, Plugins, leaving_out

__all__ = ["Brought", "BroughtCommand", "brought_commands"]

_HOOK = "esdllm_commands"
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@attrs.frozen
class BroughtCommand:
    """A command of a plugin."""

    name: str
    function: Callable[..., Any]
    """what typer takes as a command, or a `typer.Typer`"""
    origin: Origin


@attrs.frozen
class Brought:
    """What plugins bring."""

    commands: Mapping[str, BroughtCommand] = attrs.field(factory=dict)
    refused: Mapping[str, str] = attrs.field(factory=dict)
    """by name, why no command has it though plugins offer one"""
    broken: tuple[str, ...] = ()
    """why plugins are left out"""


def brought_commands(own: Collection[str] = ()) -> Brought:
    """Return the commands of the installed plugins. `own` are names that none of them may have.

    A plugin that is broken takes no other's commands away; a name that two offer is refused to both.
    """
    broken: list[BrokenPlugin] = []
    try:
        found = leaving_out(broken, lambda plugins: _sorted(plugins, own))
    except PluginError as error:  # no plugin to leave out
        return Brought(broken=(*(plugin.reason for plugin in broken), str(error)))
    return attrs.evolve(found, broken=tuple(plugin.reason for plugin in broken))


def _sorted(plugins: Plugins, own: Collection[str]) -> Brought:
    found: dict[str, BroughtCommand] = {}
    refused: dict[str, str] = {}
    for origin, offered in plugins.offers(_HOOK):
        for name, function in offered.items():
            _check(name, function, origin)
            if name in own:
                refused[name] = f"{origin} offers the command '{name}', which is esdllm's own; rename it"
            elif name in found:
                refused[name] = (
                    f"two commands are named '{name}': one from {found[name].origin}, one from {origin}; rename one, or leave "
                    f"out a plugin with {DISABLE_VARIABLE}"
                )
            else:
                found[name] = BroughtCommand(name, function, origin)
    return Brought({name: one for name, one in found.items() if name not in refused}, refused)


def _check(name: Any, function: Any, origin: Origin) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PluginError(
            f"{origin} offers the command {brief(name)}; a name is lower-case words joined by hyphens", origin.plugin
        )
    if not callable(function):
        raise PluginError(
            f"the command '{name}' of {origin} is {brief(function)}; offer a function that typer takes as a command, or a "
            "typer.Typer",
            origin.plugin,
        )
