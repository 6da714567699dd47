"""What `esdllm models` is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import attrs
import typer

from esdllm.cli import completing
from esdllm.cli.command import command
from esdllm.cli.options import Debug, Device, FamilyName, Json

app = typer.Typer(name="models", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def models(context: typer.Context, as_json: Json = False) -> None:
    """Tell which models there are, which are on this disk, and what they would take of memory.

    \b
    esdllm models
    esdllm models pull SDAR-1.7B-Chat
    esdllm models show SDAR-1.7B-Chat
    """
    if context.invoked_subcommand is None:
        command(ModelsListOptions)(as_json=as_json)


@attrs.frozen(kw_only=True)
class ModelsListOptions:
    """List the families, the public checkpoints that they know of, and the checkpoints on this disk.

    The hub's cache is looked through, and folders with what lies in the first level below them.

    \b
    esdllm models list
    esdllm models list ~/models --json
    """

    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="Where to look for checkpoints [the working folder]."),
    ] = None
    as_json: Json = False
    debug: Debug = False


@attrs.frozen(kw_only=True)
class ModelsPullOptions:
    """Fetch a checkpoint from the hub into its cache: weights, configs, tokenizer and templates, never code or pickles.

    Its config.json is read first: what no family can decode is not fetched, nor what the disk has no room for. The same
    command goes on with a download that was stopped.

    \b
    esdllm models pull LLaDA-8B-Instruct
    esdllm models pull JetLM/SDAR-1.7B-Chat
    """

    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Hub id, or the end of one that `esdllm models` lists.",
            autocompletion=completing.published,
        ),
    ]
    family: FamilyName = None
    as_json: Json = False
    debug: Debug = False


@attrs.frozen(kw_only=True)
class ModelsShowOptions:
    """Tell what a model is, what it takes of memory by dtype and quantisation, and which presets suit it.

    No weights are read or fetched; a hub id needs its config.json alone.

    \b
    esdllm models show tiny-llada
    esdllm models show LLaDA-8B-Instruct --length 2048 --batch 4
    """

    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Folder, hub id or the end of a known one, shipped name, or geometry.",
            autocompletion=completing.models,
        ),
    ]
    family: FamilyName = None
    length: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="Columns of the canvas, prompt and answer [1024].")
    ] = None
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts decoded together.")] = 1
    device: Device = None
    as_json: Json = False
    debug: Debug = False


for _name, _options in (("list", ModelsListOptions), ("pull", ModelsPullOptions), ("show", ModelsShowOptions)):
    app.command(_name)(command(_options))
