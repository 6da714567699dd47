"""esdllm's own commands: where the options of each are, and the groups that the help lists all commands in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from esdllm.cli.command import as_command, command

__all__ = ["GROUPS", "OwnCommands"]

GROUPS: Mapping[str, tuple[str, ...]] = {
    "Use a model": ("generate", "chat", "infill", "choose", "match", "edit", "serve", "models"),
    "Understand a run": ("explain", "trace", "analyze", "config", "doctor"),
    "Measure": ("eval", "bench", "simulate", "tune", "conformance", "lm-eval"),
    "Extend": ("plugins", "new-plugin"),
}
"""Commands by title, in the order of the help, those of `esdllm.extras` among them."""

_OPTIONS = {
    "generate": "generate.GenerateOptions",
    "chat": "chat.TalkOptions",
    "infill": "infill.InfillOptions",
    "choose": "on_canvas.ChooseOptions",
    "match": "on_canvas.MatchOptions",
    "edit": "on_canvas.EditOptions",
    "models": "models.app",
    "explain": "explain.ExplainOptions",
    "trace": "trace.RecordOptions",
    "analyze": "analyze.AnalyzeOptions",
    "config": "config.app",
    "doctor": "doctor.DoctorOptions",
    "eval": "evaluate.EvaluateOptions",
    "bench": "bench.app",
    "simulate": "simulate.SimulateOptions",
    "conformance": "conformance.ConformanceCheckOptions",
    "plugins": "plugins.PluginsListOptions",
    "new-plugin": "new_plugin.NewPluginOptions",
}
"""Within `esdllm.cli.options`: the class of a command's options, or a group's `typer.Typer`."""


class OwnCommands(Mapping[str, Any]):
    """Typer's commands by name, each imported when it is asked for."""

    def __init__(self) -> None:
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """Return a command."""
        if name not in self._built:
            module, _, attribute = _OPTIONS[name].partition(".")
            options = getattr(import_module(f"esdllm.cli.options.{module}"), attribute)
            self._built[name] = as_command(name, command(options) if isinstance(options, type) else options)
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_OPTIONS)

    def __len__(self) -> int:
        return len(_OPTIONS)
