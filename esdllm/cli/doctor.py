"""`esdllm doctor`."""

from __future__ import annotations

from collections.abc import Collection

import attrs
import typer

from esdllm.checkpoints.loading import describe_weights, resolve_device
from esdllm.cli.choice import Choice
from esdllm.cli.doctor_tables import Place, Visit, place_as_dict, print_place, print_visit, visit_as_dict
from esdllm.cli.group import Commands
from esdllm.cli.options.doctor import DoctorOptions
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
class Doctor(DoctorOptions):
    """Looks at the machine, and prints what it finds."""

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
            compute=weights.compute,
            choice=weights.choice,
            problems=weights.problems,
        )

    def _tell_place(self, place: Place, error: str) -> None:
        if self.as_json:
            print_json({**place_as_dict(place), "error": error, "healthy": False})
        else:
            print_place(place, stdout())
