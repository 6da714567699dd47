"""`esdllm models`: which models there are, which are here, and what they would take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import attrs
import typer

from esdllm.checkpoints.loading import describe_model
from esdllm.checkpoints.on_disk import in_folders, in_hub_cache
from esdllm.checkpoints.published import hub_id
from esdllm.checkpoints.pulling import Download
from esdllm.cli.command import command
from esdllm.cli.models_tables import Overview, print_card, print_overview
from esdllm.cli.options import Debug, Device, FamilyName, Json
from esdllm.cli.shared import print_json, stderr, stdout
from esdllm.measure.cards import Card
from esdllm.plugins.catalogue import Catalogue

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
        ModelsList(as_json=as_json).run()


@attrs.frozen(kw_only=True)
class ModelsList:
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

    def run(self) -> None:
        """Print what there is."""
        catalogue = Catalogue.load()
        with stderr().status("looking through the hub's cache"):
            here = [*in_hub_cache(catalogue), *in_folders(self.folders or [Path()], catalogue)]
        overview = Overview.of(catalogue, here)
        if self.as_json:
            print_json(overview.as_dict())
        else:
            print_overview(overview, stdout())


@attrs.frozen(kw_only=True)
class ModelsPull:
    """Fetch a checkpoint from the hub into its cache: weights, configs, tokenizer and templates, never code or pickles.

    Its config.json is read first: what no family can decode is not fetched, nor what the disk has no room for. The same
    command goes on with a download that was stopped.

    \b
    esdllm models pull LLaDA-8B-Instruct
    esdllm models pull JetLM/SDAR-1.7B-Chat
    """

    name: Annotated[str, typer.Argument(metavar="NAME", help="Hub id, or the end of one that `esdllm models` lists.")]
    family: FamilyName = None
    as_json: Json = False
    debug: Debug = False

    def run(self) -> None:
        """Fetch it, and say where it is."""
        catalogue = Catalogue.load()
        name = hub_id(self.name, catalogue)
        download = Download.of(name, catalogue)
        spec = describe_model(name, catalogue, family=self.family)
        download.check_room()
        console = stderr()
        told = f"{name}: {spec.family}, {download.size / 1e9:.1f} GB, {download.missing / 1e9:.1f} GB to fetch"
        console.print(told, style="dim", soft_wrap=True, markup=False)
        folder = download.run(catalogue)
        if self.as_json:
            print_json({"name": name, "family": spec.family, "folder": str(folder), "bytes": download.size})
        else:
            typer.echo(folder)
            option = f" --family {self.family}" if self.family else ""
            console.print(f'esdllm generate "…" --model {name}{option}', style="dim", soft_wrap=True, markup=False)


@attrs.frozen(kw_only=True)
class ModelsShow:
    """Tell what a model is, what it takes of memory by dtype and quantisation, and which presets suit it.

    No weights are read or fetched; a hub id needs its config.json alone.

    \b
    esdllm models show tiny-llada
    esdllm models show LLaDA-8B-Instruct --length 2048 --batch 4
    """

    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Folder, hub id or the end of a known one, shipped name, or geometry.")
    ]
    family: FamilyName = None
    length: Annotated[
        int | None, typer.Option(metavar="N", min=2, help="Columns of the canvas, prompt and answer [1024].")
    ] = None
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts decoded together.")] = 1
    device: Device = None
    as_json: Json = False
    debug: Debug = False

    def run(self) -> None:
        """Print it."""
        catalogue = Catalogue.load()
        card = Card.of(self.name, catalogue, self.family, self.length, self.batch, self.device)
        if self.as_json:
            print_json(card.as_dict())
        else:
            print_card(card, stdout())


_COMMANDS: dict[str, Any] = {"list": ModelsList, "pull": ModelsPull, "show": ModelsShow}
for _name, _asked in _COMMANDS.items():
    app.command(_name)(command(_asked))
