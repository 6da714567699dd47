"""`esdllm doctor`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import attrs
import typer

from esdllm.checkpoints.loading import describe_weights, resolve_device
from esdllm.cli.brought import Commands
from esdllm.cli.choice import Choice
from esdllm.cli.command import command
from esdllm.cli.doctor_tables import Place, Visit, place_as_dict, print_place, print_visit, visit_as_dict
from esdllm.cli.options import (
    BlockLength,
    Compute,
    ConfigFile,
    Debug,
    Device,
    Dtype,
    FamilyName,
    GenLength,
    Json,
    ModelName,
    PresetName,
    ProfileName,
    Quantize,
    Sets,
)
from esdllm.cli.shared import default_model, print_json, stdout
from esdllm.errors import EsdllmError
from esdllm.machine import Machine
from esdllm.measure.doctor import (
    BrokenPlugin,
    attention_backends,
    fits,
    packages,
    sound_catalogue,
)
from esdllm.plugins.auto import AUTO, choose_attention
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.components import Components


@attrs.frozen(kw_only=True)
class Doctor:
    """Tell what this machine can serve, and what a model and canvas would take.

    No weights are loaded; a hub id needs its config.json alone. Exits with 1 if the configuration cannot run here, or
    would not fit in the memory that is free, or if a plugin is broken, one of its commands too: each is listed with its
    reason, and the rest is told without them.

    \b
    esdllm doctor
    esdllm doctor --model GSAI-ML/LLaDA-8B-Instruct --batch 8 --length 4096
    esdllm doctor --model DIR --quantize int8 -s cache=offloaded --json
    """

    context: typer.Context
    model: ModelName = None
    family: FamilyName = None
    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Prompts decoded together.")] = 1
    length: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, help="Columns of the canvas, prompt and answer [the model's context]."),
    ] = None
    preset: PresetName = None
    profile: ProfileName = None
    config: ConfigFile = None
    sets: Sets = None
    gen_length: GenLength = None
    block_length: BlockLength = None
    device: Device = None
    dtype: Dtype = None
    quantize: Quantize = None
    compute: Compute = None
    as_json: Json = False
    debug: Debug = False

    def run(self) -> None:
        """Look at the machine, then at the model and the configuration on it, and print what was found."""
        catalogue, broken = sound_catalogue()
        place = Place(Machine.here(), packages(), broken, self._left_out({plugin.name for plugin in broken}))
        try:
            visit = self._visit(place, catalogue)
        except EsdllmError as error:
            if broken:  # it may be what is missing, so the user sees it first
                self._tell_place(place, str(error))
            raise
        if self.as_json:
            print_json({**place_as_dict(place), **visit_as_dict(visit)})
        else:
            print_place(place, stdout())
            print_visit(visit, stdout())
        raise typer.Exit(0 if visit.healthy() else 1)

    def _left_out(self, told: Collection[str]) -> list[BrokenPlugin]:
        """Return whose commands are left out, of the plugins that are not `told` of yet."""
        group = self.context.find_root().command
        return [plugin for plugin in group.left_out() if plugin.name not in told] if isinstance(group, Commands) else []

    def _visit(self, place: Place, catalogue: Catalogue) -> Visit:
        components = Components.resolve(Choice.of(self).config(catalogue), catalogue)
        name, where = self.model or default_model(catalogue), resolve_device(self.device)
        weights = describe_weights(
            name, self.dtype, self.quantize, catalogue, where, compute=self.compute, family=self.family
        )
        spec, length = weights.spec, self.length or weights.spec.context
        chosen = components.config.attention.name
        if chosen == AUTO:
            chosen = choose_attention(catalogue, spec, where, weights.dtype).name
        return Visit(
            place=place,
            model=name,
            spec=spec,
            device=where,
            dtype=weights.dtype,
            attention=attention_backends(catalogue, components, spec, where, weights.dtype),
            chosen=chosen,
            store=components.config.cache.name,
            fits=fits(catalogue, components, spec, self.batch, length, where, weights.dtype, weights.bytes),
            batch=self.batch,
            length=length,
            quantize=self.quantize,
            compute=self.compute,
            problems=weights.problems,
        )

    def _tell_place(self, place: Place, error: str) -> None:
        if self.as_json:
            print_json({**place_as_dict(place), "error": error, "healthy": False})
        else:
            print_place(place, stdout())


doctor = command(Doctor)
