"""The project's file and the environment: settings that hold without being written on every command line.

Only the command reads them. A call of `esdllm.configure` is a function of its arguments; `find_project` gives it a project's
file as one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from esdllm.config.layers import SettingsLayer, line_numbers
from esdllm.config.settings import SECTIONS, DecodeConfig, check_setting, parse_set, read_toml
from esdllm.errors import ConfigError, known
from esdllm.names import called_here

__all__ = [
    "DEBUG_VARIABLE",
    "DISABLE_VARIABLE",
    "FAMILY_VARIABLE",
    "HOME_VARIABLE",
    "KEY_VARIABLE",
    "MODEL_VARIABLE",
    "PRESET_VARIABLE",
    "PROFILE_VARIABLE",
    "PROJECT_FILE",
    "PROJECT_VARIABLE",
    "Project",
    "current_file",
    "current_project",
    "environment_layers",
    "environment_sets",
    "find_project",
    "nearest_file",
    "read_project",
]

PROJECT_FILE = "esdllm.toml"
"""What a project's file is called."""

MODEL_VARIABLE = "ESDLLM_MODEL"
"""Environment variable: the checkpoint where --model names none."""

FAMILY_VARIABLE = "ESDLLM_FAMILY"
"""Environment variable: the model's family where --family says none."""

PRESET_VARIABLE = "ESDLLM_PRESET"
"""Environment variable: the preset where the command line names none."""

PROFILE_VARIABLE = "ESDLLM_PROFILE"
"""Environment variable: the profile where --profile names none."""

PROJECT_VARIABLE = "ESDLLM_PROJECT"
"""Environment variable: the project's file, in place of the nearest one; `none` for none."""

DEBUG_VARIABLE = "ESDLLM_DEBUG"
"""Environment variable: where it says anything, the command shows the traceback of every error, as with --debug."""

DISABLE_VARIABLE = "ESDLLM_DISABLE_PLUGINS"
"""Environment variable: names of plugins to leave out, separated by commas."""

HOME_VARIABLE = "ESDLLM_HOME"
"""Environment variable: the folder that keeps what was measured of this machine; `esdllm` in the user's cache if unset."""

KEY_VARIABLE = "ESDLLM_API_KEY"
"""names a key that requests to `esdllm serve` must bring"""

_PREFIX = "ESDLLM_"
_OTHERS = (
    DEBUG_VARIABLE,
    DISABLE_VARIABLE,
    FAMILY_VARIABLE,
    HOME_VARIABLE,
    KEY_VARIABLE,
    MODEL_VARIABLE,
    PRESET_VARIABLE,
    PROFILE_VARIABLE,
    PROJECT_VARIABLE,
)


@attrs.frozen
class Project:
    """What a project's file says, for `esdllm.configure(project=...)`."""

    path: Path | None = None
    """the file; None if there is none"""
    profile: str | None = None
    layers: tuple[SettingsLayer, ...] = ()
    """the file's own settings, and its profile's over them"""
    profiles: tuple[str, ...] = ()
    """the names of all its profiles"""

    def label(self) -> str:
        """Return the file and the profile in a few words; empty if there is none."""
        return self.layers[-1].at() if self.layers else ""


def find_project(start: Path | str | None = None, profile: str | None = None) -> Project:
    """Return the settings of the nearest project's file, and of one of its profiles.

    Looks in the folder `start`, by default the working folder, then in those above it, up to one with a `.git` or the root.
    In each for esdllm.toml, then for a pyproject.toml with a table [tool.esdllm]. Without a file the result is empty.

    Raises:
        ConfigError: the file is not TOML, or there is no such profile.
    """
    file = nearest_file(start)
    if file is not None:
        return read_project(file, profile)
    if profile is not None:
        raise ConfigError(
            f"no profile '{profile}': there is no {PROJECT_FILE} in {Path(start or '.').absolute()} or above it; write one "
            f"with a table [profiles.{profile}]"
        )
    return Project()


def nearest_file(start: Path | str | None = None) -> Path | None:
    """Return the project's file that `find_project` reads; None if there is none."""
    begin = Path(start or ".").absolute()
    for folder in (begin, *begin.parents):
        for file in (folder / PROJECT_FILE, folder / "pyproject.toml"):
            if file.is_file() and (file.name == PROJECT_FILE or _has_table(file)):
                return file
        if (folder / ".git").exists():
            break
    return None


def current_file() -> Path | None:
    """Return the project's file that the command reads: the one that ESDLLM_PROJECT names, else the nearest."""
    named = os.environ.get(PROJECT_VARIABLE, "").strip()
    if named == "none":
        return None
    return Path(named).expanduser() if named else nearest_file()


def current_project(profile: str | None = None) -> Project:
    """Return the project's settings as the command has them, of `current_file`.

    Raises:
        ConfigError: as `find_project`; or there is no such file.
    """
    file = current_file()
    if file is not None:
        return read_project(file, profile)
    if os.environ.get(PROJECT_VARIABLE, "").strip() and profile is not None:
        raise ConfigError(f"no profile '{profile}': {PROJECT_VARIABLE}=none leaves the project's file unread; unset it")
    return find_project(profile=profile) if profile is not None else Project()


def _has_table(file: Path) -> bool:
    text = file.read_text(encoding="utf-8", errors="replace")  # one that is broken elsewhere is no matter of ours
    return "tool.esdllm" in text and "esdllm" in read_toml(file).get("tool", {})


def read_project(file: Path | str, profile: str | None = None) -> Project:
    """Return the settings of a project's file: TOML, or a pyproject.toml's [tool.esdllm].

    Raises:
        ConfigError: no such file, not TOML, or no such profile.
    """
    file = Path(file)
    table: Any = read_toml(file)
    above: tuple[str, ...] = ("tool", "esdllm") if file.name == "pyproject.toml" else ()
    for key in above:
        table = table.get(key, {})
        if not isinstance(table, Mapping):
            raise ConfigError(f"{file}: {key} is no table; write [tool.esdllm]")
    shown, lines = _shown(file), line_numbers(file.read_text(encoding="utf-8-sig")) if file.is_file() else {}
    own = {key: value for key, value in table.items() if key != "profiles"}
    profiles = _profiles(table, shown)
    layers = [SettingsLayer(shown, own, found=True, lines=_below(lines, above))]
    if profile is not None:
        if profile not in profiles:
            raise ConfigError(f"{shown}: unknown profile '{profile}'; {known(profile, profiles)}")
        below = _below(lines, (*above, "profiles", profile))
        layers.append(SettingsLayer(shown, profiles[profile], found=True, lines=below, profile=profile))
    return Project(file, profile, tuple(layers), tuple(profiles))


def _profiles(table: Mapping[str, Any], shown: str) -> Mapping[str, Mapping[str, Any]]:
    found = table.get("profiles", {})
    if not isinstance(found, Mapping):
        raise ConfigError(f"{shown}: profiles = {found!r}: write a table a profile, such as [profiles.fast]")
    for name, settings in found.items():
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{shown}: profiles.{name} = {settings!r}: write a table, [profiles.{name}]")
    return found


def _below(lines: Mapping[tuple[str, ...], int], above: tuple[str, ...]) -> dict[tuple[str, ...], int]:
    return {
        keys[len(above) :]: line
        for keys, line in lines.items()
        if len(keys) > len(above) and keys[: len(above)] == above
    }


def _shown(file: Path) -> str:
    """Return a path as one would write it in the working folder."""
    try:
        near = os.path.relpath(file)
    except ValueError:  # another drive
        return str(file)
    return near if len(near) < len(str(file)) else str(file)


def environment_sets(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what `--set` would be given for each variable that sets something, such as ESDLLM_UNMASKING__THRESHOLD=0.8.

    Components come before their options. An empty variable says nothing.

    Raises:
        ConfigError: a variable begins with ESDLLM_ and is none that esdllm reads.
    """
    environ = os.environ if environ is None else environ
    settings = [field.name for field in attrs.fields(DecodeConfig)]
    found = {}
    for name in sorted(environ, key=lambda name: (name.count("__"), name)):
        if not name.startswith(_PREFIX) or name in _OTHERS or not environ[name].strip():
            continue
        key, below, option = name.removeprefix(_PREFIX).lower().partition("__")
        if key not in settings:
            names = [*_OTHERS, *(_PREFIX + setting.upper() for setting in settings)]
            hint = known(key if called_here(key) else name, names)
            raise ConfigError(f"unknown environment variable {name}; {hint}")
        found[name] = f"{key}{'.' if below else ''}{option}={environ[name]}"
    return found


def environment_layers(environ: Mapping[str, str] | None = None) -> list[SettingsLayer]:
    """Return the settings of the environment, a layer per variable; see `environment_sets`."""
    return [SettingsLayer(name, _parsed(name, text)) for name, text in environment_sets(environ).items()]


def _parsed(name: str, text: str) -> dict[str, Any]:
    try:
        found = parse_set(text)
        for key in found.keys() - set(SECTIONS):
            check_setting(key, found[key])
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from None
    return found
