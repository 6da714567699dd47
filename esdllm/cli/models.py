"""`esdllm models`: which models there are, which are here, and what they would take."""

from __future__ import annotations

from pathlib import Path

import attrs
import typer

from esdllm.checkpoints.loading import describe_model
from esdllm.checkpoints.on_disk import in_folders, in_hub_cache
from esdllm.checkpoints.published import hub_id
from esdllm.checkpoints.pulling import Download
from esdllm.cli.models_tables import Overview, print_card, print_overview
from esdllm.cli.options.models import ModelsListOptions, ModelsPullOptions, ModelsShowOptions
from esdllm.cli.shared import print_json, stderr, stdout
from esdllm.measure.cards import Card
from esdllm.plugins.catalogue import Catalogue


@attrs.frozen(kw_only=True)
class ModelsList(ModelsListOptions):
    """Looks through the disk, and prints what there is."""

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
class ModelsPull(ModelsPullOptions):
    """Fetches a checkpoint, and prints its folder."""

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
class ModelsShow(ModelsShowOptions):
    """Describes a model, and prints its card."""

    def run(self) -> None:
        """Print it."""
        catalogue = Catalogue.load()
        card = Card.of(self.name, catalogue, self.family, self.length, self.batch, self.device)
        if self.as_json:
            print_json(card.as_dict())
        else:
            print_card(card, stdout())
