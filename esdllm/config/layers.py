"""Where settings come from: layers of them, one over the other, and what comes out with the origin of each value."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from esdllm.config.settings import SECTIONS, ComponentConfig, DecodeConfig, base_preset, check_setting, merge, read_toml
from esdllm.errors import ConfigError, known
from esdllm.parsing import parse_toml

__all__ = ["Keys", "SettingsLayer", "Settled", "file_layer", "line_numbers", "settle"]

Keys = tuple[str, ...]
"""A place in a configuration: ("gen_length",), ("refresh",) or ("refresh", "block_refresh")."""


@attrs.frozen
class SettingsLayer:
    """Settings, and who says them."""

    place: str
    """a file, an environment variable, an option of the command; empty for an argument of a call"""
    settings: Mapping[str, Any]
    found: bool = False
    """whether nobody asked for it: a preset that is named above it then leaves its components aside"""
    lines: Mapping[Keys, int] = attrs.field(factory=dict, repr=False)
    """the line of each key, where the place is a file"""
    profile: str | None = None

    def at(self, *keys: str) -> str:
        """Return the place of a setting, with its line and profile."""
        line = self.lines.get(keys)
        return f"{self.place}{f':{line}' if line else ''}{f', profile {self.profile}' if self.profile else ''}"

    def says(self, message: object, *keys: str) -> str:
        """Return an error's message with the place before it, unless it was just typed."""
        return f"{self.at(*keys)}: {message}" if self.place and not self.place.startswith("--") else str(message)


@attrs.frozen
class Settled:
    """What comes out of layers."""

    preset: str | None
    """where they start; None if they give every section"""
    preset_origin: str
    """who named it; empty if nobody did"""
    settings: Mapping[str, Any]
    origins: Mapping[Keys, SettingsLayer]
    """the layer that had the last word on each setting, section and option; none for one left at its default"""
    aside: tuple[tuple[SettingsLayer, str], ...] = ()
    """sections of found layers that the preset leaves aside"""
    problems: tuple[str, ...] = ()
    """what is wrong with it, short of what only the components know"""

    def config(self) -> DecodeConfig:
        """Return the configuration.

        Raises:
            ConfigError: the first of the problems.
        """
        if self.problems:
            raise ConfigError(self.problems[0])
        return DecodeConfig.from_dict(self.settings)

    def component_problems(self, build: Callable[[str, ComponentConfig], object]) -> list[str]:
        """Return all that `build`, a catalogue's, has against the components, each with its place."""
        config, found = self.config(), []
        for section in SECTIONS:
            found += self._problems(section, getattr(config, section), build)
        for item in config.observers:
            found += self._problems("observers", item, build)
        return found

    def _problems(
        self, kind: str, component: ComponentConfig, build: Callable[[str, ComponentConfig], object]
    ) -> list[str]:
        """Return a component's problems: as long as there is one, the option without which it is gone is left out."""
        found, options = [], dict(component.options)

        def problem(without: str = "") -> str:
            try:
                build(kind, ComponentConfig(component.name, {k: v for k, v in options.items() if k != without}))
            except ConfigError as error:
                return str(error)
            return ""

        while message := problem():
            culprit = next((name for name in options if problem(name) != message), "")
            keys = next((keys for keys in ((kind, culprit), (kind,)) if keys in self.origins), None)
            found.append(self.origins[keys].says(message, *keys) if keys else message)
            if not culprit or problem(culprit).endswith(f"option '{culprit}' must be given"):
                break
            del options[culprit]
        return found


def settle(
    layers: Sequence[SettingsLayer],
    preset: str | None,
    default: str | None,
    presets: Callable[[str], Mapping[str, Any]],
) -> Settled:
    """Return what comes out of a preset and the layers over it, later over earlier.

    The preset is `preset`, else what the last layer names that names one, else `default` unless a layer is complete. What
    found layers below that say of components is left aside; their run-wide settings stay. `presets` gives a preset's
    settings.

    Raises:
        ConfigError: an unknown preset, or one that is no name. All else is among the problems.
    """
    base = base_preset(preset, [layer.settings for layer in layers], default)
    start = next((i for i in reversed(range(len(layers))) if _starts(layers[i].settings)), 0)
    named = layers[start] if not preset and layers and "preset" in layers[start].settings else None
    start = len(layers) if preset else start
    try:
        lowest = SettingsLayer(f"preset {base}", presets(base) if base else {})
    except ConfigError as error:
        raise ConfigError(named.says(error, "preset") if named else str(error)) from None
    merging = _Merging()
    aside: list[tuple[SettingsLayer, str]] = []
    for number, layer in enumerate([lowest, *layers], start=-1):
        dropped = layer.found and number < start
        aside += [(layer, key) for key in layer.settings if dropped and key in SECTIONS]
        merging.add(layer, without=("preset", *SECTIONS) if dropped else ("preset",))
    return Settled(
        preset=base,
        preset_origin=named.at("preset") if named else "",
        settings=merging.settings,
        origins=merging.origins,
        aside=tuple(aside),
        problems=(*merging.problems, *merging.wrong_values()),
    )


def _starts(settings: Mapping[str, Any]) -> bool:
    """Return whether settings choose all components, by a preset or one by one."""
    return "preset" in settings or set(SECTIONS) <= set(settings)


class _Merging:
    """Settings so far, and who said them."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.origins: dict[Keys, SettingsLayer] = {}
        self.problems: list[str] = []

    def add(self, layer: SettingsLayer, without: Sequence[str]) -> None:
        names = [field.name for field in attrs.fields(DecodeConfig)]
        for key, value in layer.settings.items():
            if key in without:
                continue
            if key not in names:
                self.problems.append(layer.says(f"unknown setting '{key}'; {known(key, names)}", key))
                continue
            try:
                before, self.settings = self.settings, merge(self.settings, {key: value})
                self._note(layer, key, value, before)
            except ConfigError as error:
                self.problems.append(layer.says(error, key))

    def _note(self, layer: SettingsLayer, key: str, value: Any, before: Mapping[str, Any]) -> None:
        """Note who had the last word: on a section who chose its component, and on each option."""
        if key not in SECTIONS:
            self.origins[key,] = layer
            return
        component = ComponentConfig.of(self.settings[key])
        if key not in before or ComponentConfig.of(before[key]).name != component.name:
            self.origins = {keys: who for keys, who in self.origins.items() if keys[0] != key}
        options = () if isinstance(value, str) else value
        if isinstance(value, str) or "name" in options:
            self.origins[key,] = layer
        self.origins.update({(key, option): layer for option in options if option != "name"})

    def wrong_values(self) -> Iterator[str]:
        for key, value in self.settings.items():
            if key in SECTIONS:
                continue
            try:
                check_setting(key, value)
            except ValueError as error:
                yield self.origins[key,].says(error, key)


def file_layer(path: Path | str) -> SettingsLayer:
    """Return the layer of a TOML file.

    Raises:
        ConfigError: no such file, or not TOML (with the line).
    """
    settings, path = read_toml(path), Path(path)
    if "profiles" in settings:
        raise ConfigError(
            f"{path} has profiles, which only a project's file may: name it esdllm.toml, or set ESDLLM_PROJECT={path}"
        )
    lines = line_numbers(path.read_text(encoding="utf-8-sig")) if path.is_file() else {}  # a pipe is read once
    return SettingsLayer(str(path), settings, lines=lines)


def line_numbers(text: str) -> dict[Keys, int]:
    """Return the line on which each key of a TOML text first stands, counted from 1."""
    found: dict[Keys, int] = {}
    header, start, lines = "", 0, text.splitlines()
    for end in range(1, len(lines) + 1):
        chunk = "\n".join(lines[start:end])
        table = chunk.lstrip().startswith("[")
        try:
            parsed = parse_toml(chunk if table else f"{header}\n{chunk}")
        except ValueError:
            continue  # the value goes on
        for keys in _paths(parsed):
            found.setdefault(keys, start + 1)
        header, start = chunk if table else header, end
    return found


def _paths(table: Mapping[str, Any], above: Keys = ()) -> Iterator[Keys]:
    for key, value in table.items():
        yield (*above, key)
        if isinstance(value, Mapping):
            yield from _paths(value, (*above, key))
