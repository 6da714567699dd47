"""`esdllm config`: show, validate and describe configurations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import tomli_w
import typer
from rich.text import Text

from esdllm.checkpoints.loading import describe_model
from esdllm.cli.choice import Choice
from esdllm.cli.options.config import ConfigSchemaOptions, ConfigShowOptions, ConfigValidateOptions
from esdllm.cli.shared import counted, print_json, stderr, stdout
from esdllm.config import DEFAULT_PRESET, SECTIONS, DecodeConfig
from esdllm.config.layers import Keys, Settled
from esdllm.config.project import PROJECT_FILE, current_file, read_project
from esdllm.errors import ConfigError
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components
from esdllm.views import ModelSpec

Line = tuple[str, str]
"""A line of TOML, and the comment behind it."""


@attrs.frozen(kw_only=True)
class ConfigShow(ConfigShowOptions):
    """Settles the configuration, and prints it line by line."""

    def run(self) -> None:
        """Settle, and print line by line."""
        choice = Choice.of(self)
        catalogue = Catalogue.load()
        decode, settled = choice.config(catalogue), choice.settled(catalogue)
        if self.as_json:
            print_json(_as_dict(decode, settled, choice))
            return
        console = stdout()
        origin = f" ({settled.preset_origin})" if settled.preset_origin else ""
        console.print(f"# preset {settled.preset}{origin}" if settled.preset else "# no preset", style="bright_black")
        for code, comment in _lines(decode, settled, catalogue):
            text = Text(code, style="bright_black" if code.startswith("#") else "")
            if comment:
                text.append(f"{' ' * max(2, 34 - len(code))}# {comment}", style="bright_black")
            console.print(text, soft_wrap=True)


@attrs.frozen(kw_only=True)
class ConfigValidate(ConfigValidateOptions):
    """Checks every file, and prints what is wrong."""

    def run(self) -> None:
        """Look at every file, and print what is wrong."""
        catalogue = Catalogue.load()
        spec = describe_model(self.model, catalogue, family=self.family) if self.model else None
        wrong = 0
        for file in self.files or [_project_file()]:
            problems = file_problems(file, catalogue, spec)
            for problem in problems:
                typer.echo(" ".join(problem.split()))
            wrong += len(problems)
            if not problems:
                stderr().print(_praise(file), style="dim", soft_wrap=True, markup=False)
        if wrong:
            stderr().print(counted(wrong, "problem"), style="dim")
            raise typer.Exit(1)


@attrs.frozen(kw_only=True)
class ConfigSchema(ConfigSchemaOptions):
    """Prints the schema of what is installed."""

    def run(self) -> None:
        """Print it."""
        from esdllm.plugins.schema import configuration_schema

        print_json(configuration_schema(Catalogue.load()))


def _project_file() -> Path:
    found = current_file()
    if found is None:
        raise ConfigError(f"there is no {PROJECT_FILE} in this folder or above it; name a file")
    return found


def _praise(file: Path) -> str:
    project = read_project(file)
    profiles = project.profiles
    return f"{project.label()}: good" + (
        f", with {counted(len(profiles), 'profile')}: {', '.join(profiles)}" if profiles else ""
    )


def file_problems(file: Path, catalogue: Catalogue, spec: ModelSpec | None = None) -> list[str]:
    """Return all that is wrong with a file and each of its profiles, each once; with a model also of the run's plan."""
    try:
        profiles = read_project(file).profiles
    except ConfigError as error:
        return [str(error)]
    found = [problem for profile in (None, *profiles) for problem in _problems(file, profile, catalogue, spec)]
    return list(dict.fromkeys(found))


def _problems(file: Path, profile: str | None, catalogue: Catalogue, spec: ModelSpec | None) -> Iterator[str]:
    project = read_project(file, profile)
    try:
        settled = catalogue.settle(project.layers, default=DEFAULT_PRESET)
        if settled.problems:
            yield from settled.problems
            return
        wrong = settled.component_problems(catalogue.build)
        yield from wrong
        if spec and not wrong:
            Components.resolve(settled.config(), catalogue).check_plan(spec)
    except ConfigError as error:
        yield error_at(project.label(), error)


def error_at(place: str, error: ConfigError) -> str:
    """Return an error's message with a place before it, unless it names the place already."""
    return str(error) if str(error).startswith(place.split(",")[0]) else f"{place}: {error}"


def _lines(config: DecodeConfig, settled: Settled, catalogue: Catalogue) -> Iterator[Line]:
    """Return the configuration's lines, run-wide settings first."""
    for field in attrs.fields(DecodeConfig):
        if field.name == "observers":
            if config.observers:
                value = [one.to_dict() for one in config.observers]
                yield f"observers = {inline(value)}", _origin(settled, "observers")
        elif field.name not in SECTIONS:
            yield f"{field.name} = {inline(getattr(config, field.name))}", _origin(settled, field.name)
    for section in SECTIONS:
        chosen = getattr(config, section)
        yield "", ""
        yield f"[{section}]", ""
        yield f"name = {inline(chosen.name)}", _origin(settled, section)
        for name, value in chosen.options.items():
            yield f"{key(name)} = {inline(value)}", _origin(settled, section, name)
        for option in catalogue.entry(section, chosen.name).options:
            if option.name not in chosen.options:
                yield _default(option.name, option.default)


def _default(name: str, value: Any) -> Line:
    if value is None or value is attrs.NOTHING or attrs.has(type(value)):
        return f"# {name} is not given", ""
    return f"# {name} = {inline(value)}", "default"


def _origin(settled: Settled, *keys: str) -> str:
    who = settled.origins.get(keys)
    return who.at(*keys) if who else "default"


def key(name: str) -> str:
    """Return a key as TOML writes it."""
    return tomli_w.dumps({name: 0}).rpartition(" = ")[0]


def inline(value: Any) -> str:
    """Return a value as TOML writes it on one line."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(inline, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key(name)} = {inline(item)}' for name, item in value.items())}}}"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").rstrip("\n")


def _as_dict(config: DecodeConfig, settled: Settled, choice: Choice) -> dict[str, Any]:
    def dotted(keys: Keys) -> str:
        return ".".join(keys)

    return {
        "preset": settled.preset,
        "preset_origin": settled.preset_origin or None,
        "project": str(choice.project.path) if choice.project.path else None,
        "profile": choice.profile,
        "config": config.to_dict(),
        "origins": {dotted(keys): layer.at(*keys) for keys, layer in sorted(settled.origins.items())},
        "left_aside": [layer.at(section) + f": {section}" for layer, section in settled.aside],
    }
