"""The commands that packages bring to `esdllm`, by the hook `esdllm_commands`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import attrs

from esdllm.config.project import DISABLE_VARIABLE
from esdllm.errors import PluginError, brief
from esdllm.hookspecs import PROJECT
from esdllm.plugins.loader import BrokenPlugin, Origin, Plugins, leaving_out

__all__ = ["Brought", "BroughtCommand", "brought_commands"]

_HOOK = "esdllm_commands"
_NAMING = "esdllm_command"  # a hook that is misspelt in its last letter is reported too
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
    left_out: tuple[BrokenPlugin, ...] = ()
    """plugins whose commands are left out, all or one, and why; the name is empty where no one plugin is to blame"""


def brought_commands(own: Collection[str] = ()) -> Brought:
    """Return the commands of the installed plugins. `own` are names that none of them may have.

    A plugin that is broken takes no other's commands away; a name that two offer is refused to both, one that esdllm's own
    plugin offers to the others.
    """
    broken: list[BrokenPlugin] = []
    try:
        found = leaving_out(broken, lambda plugins: _sorted(plugins, own), naming=_NAMING)
    except PluginError as error:  # no plugin to leave out
        return Brought(left_out=(*broken, BrokenPlugin("", str(error))))
    return attrs.evolve(found, left_out=(*broken, *found.left_out))


def _sorted(plugins: Plugins, own: Collection[str]) -> Brought:
    found: dict[str, BroughtCommand] = {}
    refused: list[BrokenPlugin] = []
    twice: set[str] = set()
    for origin, offered in sorted(plugins.offers(_HOOK), key=lambda offer: not _is_own(offer[0])):
        for name, function in offered.items():
            _check(name, function, origin)
            if name in own or (name in found and _is_own(found[name].origin)):
                why = f"{origin} offers the command '{name}', which is esdllm's own; rename it"
                refused.append(BrokenPlugin(origin.plugin, why))
            elif name in found:
                twice.add(name)
                why = (
                    f"two commands are named '{name}': one from {found[name].origin}, one from {origin}; rename one, or leave "
                    f"out a plugin with {DISABLE_VARIABLE}"
                )
                refused.append(BrokenPlugin(origin.plugin, why))
            else:
                found[name] = BroughtCommand(name, function, origin)
    return Brought({name: one for name, one in found.items() if name not in twice}, tuple(refused))


def _is_own(origin: Origin) -> bool:
    return origin.distribution == PROJECT


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
