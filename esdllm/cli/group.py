"""The group of all commands: esdllm's own, and those that plugins bring."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer
from typer.core import TyperGroup

from esdllm.cli.command import as_command
from esdllm.cli.own import GROUPS, OwnCommands
from esdllm.errors import PluginError
from esdllm.plugins.commands import BroughtCommand, brought_commands
from esdllm.plugins.loader import BrokenPlugin, blaming

__all__ = ["Commands"]

_WHOLE = 1000  # characters: no summary is cut


class Commands(TyperGroup):
    """Own commands are found without a look at the plugins; those are asked only for another name, and for the help."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands: Any = OwnCommands()
        self._found: Mapping[str, Any] = {}

    def list_commands(self, ctx: Any) -> list[str]:
        """Return all names, by the groups of the help; what is wrong with plugins goes to standard error."""
        brought, wrong = self._brought()
        if not ctx.resilient_parsing:  # a shell that completes has no place for it
            for problem in wrong:
                typer.echo(f"left out: {problem.reason}", err=True)
        self._found = brought
        grouped = [name for names in GROUPS.values() for name in names]
        return [name for name in grouped if name in self.commands or name in brought] + [
            name for name in sorted(brought) if name not in grouped
        ]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write every command with the whole of its first sentence, under the title of its group."""
        names = self.list_commands(ctx)
        ungrouped = [name for name in names if not any(name in group for group in GROUPS.values())]
        for title, group in {**GROUPS, "From other packages": ungrouped}.items():
            rows = [(name, self.get_command(ctx, name).get_short_help_str(_WHOLE)) for name in group if name in names]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command by name; None if there is none.

        Raises:
            PluginError: a plugin may offer it, and is broken, or may not have the name.
        """
        if cmd_name in self.commands:
            return self.commands[cmd_name]
        if cmd_name in self._found:
            return self._found[cmd_name]
        brought, wrong = self._brought()
        if cmd_name not in brought and wrong:
            reasons = "; ".join(problem.reason for problem in wrong)
            raise PluginError(f"there is no command '{cmd_name}', unless of what is left out: {reasons}")
        return brought.get(cmd_name)

    def left_out(self) -> list[BrokenPlugin]:
        """Return the plugins whose commands are left out, all or one, and why."""
        return self._brought()[1]

    def _brought(self) -> tuple[dict[str, Any], list[BrokenPlugin]]:
        """Return what plugins bring, as typer's commands, and what is wrong with the rest."""
        found = brought_commands(self.commands)
        wrong = list(found.left_out)
        built = {}
        for name, one in found.commands.items():
            made = _built(one)
            if isinstance(made, BrokenPlugin):
                wrong.append(made)
            else:
                built[name] = made
        return built, wrong


def _built(one: BroughtCommand) -> Any:
    """Return typer's command, or what is wrong with the function."""
    try:
        with blaming(one.origin.plugin, f"the command '{one.name}' of {one.origin} cannot be built"):
            return as_command(one.name, one.function)
    except PluginError as error:
        return BrokenPlugin(one.origin.plugin, str(error))
