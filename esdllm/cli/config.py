"""`esdllm config`: show, validate and describe configurations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import attrs
import tomli_w
import typer
from rich.text import Text

from esdllm.checkpoints.loading import describe_model
from esdllm.cli.choice import Choice
from esdllm.cli.command import command
from esdllm.cli.options import (
    BlockLength,
    ConfigFile,
    Debug,
    FamilyName,
    GenLength,
    Json,
    PresetName,
    ProfileName,
    Sets,
)
from esdllm.cli.shared import counted, print_json, stderr, stdout
from esdllm.config import DEFAULT_PRESET, SECTIONS, DecodeConfig
from esdllm.config.layers import Keys, Settled
from esdllm.config.project import PROJECT_FILE, current_file, read_project
from esdllm.errors import ConfigError
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components
from esdllm.views import ModelSpec

app = typer.Typer(name="config", rich_markup_mode=None)
Line = tuple[str, str]
"""A line of TOML, and the comment behind it."""


@app.callback(invoke_without_command=True)
def config_(context: typer.Context) -> None:
    """Show where settings come from, check files, describe them to an editor.

    \b
    esdllm config show --profile fast
    esdllm config validate
    esdllm config schema > esdllm.plugins.schema.json
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@attrs.frozen(kw_only=True)
class ConfigShow:
    """Print what settings hold, and from where.

    It is what a command with the same options would use. The output is TOML that --config reads; options left at their
    defaults are comments in it.

    \b
    esdllm config show
    esdllm config show --preset dual-cache --set gen_length=64
    esdllm config show --json
    """

    preset: PresetName = None
    profile: ProfileName = None
    config: ConfigFile = None
    sets: Sets = None
    gen_length: GenLength = None
    block_length: BlockLength = None
    as_json: Json = False
    debug: Debug = False

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
class ConfigValidate:
    """Check configuration files.

    Prints every problem, one a line, with its place, and exits with 1 if there is one.

    \b
    esdllm config validate
    esdllm config validate decode.toml tuned.toml
    esdllm config validate --model GSAI-ML/LLaDA-8B-Instruct
    """

    files: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...", help=f"TOML files, with all their profiles [the project's {PROJECT_FILE}]."
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="NAME", help="Also plan a run of this model, which finds contradictions."
        ),
    ] = None
    family: FamilyName = None
    debug: Debug = False

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
class ConfigSchema:
    """Print a JSON schema for editors.

    It holds the components that are installed and their options, in draft 2020-12. A file whose first line is
    "#:schema ./esdllm.config.schema.json" is then completed and checked by editors that build on Taplo.

    \b
    esdllm config schema > esdllm.plugins.schema.json
    """

    debug: Debug = False

    def run(self) -> None:
        """Print it."""
        from esdllm.plugins.schema import configuration_schema

        print_json(configuration_schema(Catalogue.load()))


for _name, _asked in (("show", ConfigShow), ("validate", ConfigValidate), ("schema", ConfigSchema)):
    app.command(_name)(command(_asked))


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
