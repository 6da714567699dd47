"""What `esdllm config` is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import typer

from esdllm.cli import completing
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
    Temperature,
    TopK,
    TopP,
)
from esdllm.config.project import PROJECT_FILE

app = typer.Typer(name="config", rich_markup_mode=None)


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
class ConfigShowOptions:
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
    temperature: Temperature = None
    top_p: TopP = None
    top_k: TopK = None
    as_json: Json = False
    debug: Debug = False


@attrs.frozen(kw_only=True)
class ConfigValidateOptions:
    """Check configuration files.

    Prints every problem, one per line, with its place, and exits with 1 if there is one.

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
            "--model",
            "-m",
            metavar="NAME",
            help="Also plan a run of this model, which finds contradictions.",
            autocompletion=completing.models,
        ),
    ] = None
    family: FamilyName = None
    debug: Debug = False


@attrs.frozen(kw_only=True)
class ConfigSchemaOptions:
    """Print a JSON schema for editors.

    It holds the components that are installed and their options, in draft 2020-12. A file whose first line is
    "#:schema ./esdllm.config.schema.json" is then completed and checked by editors that build on Taplo.

    \b
    esdllm config schema > esdllm.plugins.schema.json
    """

    debug: Debug = False


for _name, _options in (
    ("show", ConfigShowOptions),
    ("validate", ConfigValidateOptions),
    ("schema", ConfigSchemaOptions),
):
    app.command(_name)(command(_options))
