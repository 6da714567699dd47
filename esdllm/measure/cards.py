"""What there is to tell of a model before its weights are read: its config, the memory that it takes, the presets that suit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from esdllm.checkpoints.families import families, geometries, shipped_checkpoints
from esdllm.checkpoints.loading import Weights, describe_weights, resolve_device
from esdllm.checkpoints.published import KnownCheckpoint, hub_id, known_checkpoints
from esdllm.config import DEFAULT_PRESET
from esdllm.machine import Fit, Machine
from esdllm.measure.doctor import fits
from esdllm.plugins.catalogue import Catalogue
from esdllm.plugins.offers import Offers
from esdllm.runtime.components import Components
from esdllm.views import ModelSpec

__all__ = ["Card", "HeldAs", "presets_that_suit"]

_LENGTH, _BLOCK = 1024, 64
_DTYPES = ("float32", "bfloat16")
_GENERAL = ("vanilla", "prefix-cache", "dual-cache", "es-dllm")
"""presets that are no family's own"""


@attrs.frozen
class HeldAs:
    """What a run takes with the weights held in one way."""

    dtype: str
    """of what is not quantised"""
    quantize: str | None
    fit: Fit
    """with the default preset's cache store"""
    here: bool
    """whether it can be held so on the device, and fits in what is free there now"""
    problems: tuple[str, ...] = ()
    """why it cannot be held so"""


@attrs.frozen
class Card:
    """What is told of a model."""

    name: str
    spec: ModelSpec
    verified: str
    """what was compared with the public code"""
    ships: bool
    """whether its weights come with a plugin"""
    known: KnownCheckpoint | None
    """what its family knows of it; None of what is not public"""
    device: torch.device
    batch: int
    length: int
    """columns of the canvas"""
    held: tuple[HeldAs, ...]
    presets: tuple[tuple[str, str], ...]
    """those that suit, each with a line on what it is"""

    @classmethod
    def of(
        cls,
        name: str,
        catalogue: Catalogue,
        family: str | None = None,
        length: int | None = None,
        batch: int = 1,
        device: str | None = None,
    ) -> Card:
        """Return what is told of a folder, a hub id or the end of a known one, a shipped checkpoint, or a geometry.

        Raises:
            CheckpointError: there is none of that name, or it cannot be read.
            InputError: the canvas leaves no room for a prompt.
        """
        source = _source(name, catalogue)
        where = resolve_device(device)
        spec = describe_weights(source, None, None, catalogue, where, family=family, measure=False).spec
        offered = families(catalogue)
        offers = Offers.of(offered[spec.family]) if spec.family in offered else Offers()
        columns = length or min(_LENGTH, spec.context)
        ways = [*((dtype, None) for dtype in _DTYPES), *((_DTYPES[-1], kind) for kind in sorted(offers.quantizations))]
        held = []
        for dtype, kind in ways:
            weights = describe_weights(source, dtype, kind, catalogue, where, family=family, measure=False)
            held.append(_held(dtype, kind, weights, columns, batch, where, catalogue))
        return cls(
            name=source if isinstance(source, str) else name,
            spec=spec,
            verified=offers.verified,
            ships=source in shipped_checkpoints(catalogue) if isinstance(source, str) else False,
            known=known_checkpoints(catalogue).get(source) if isinstance(source, str) else None,
            device=where,
            batch=batch,
            length=columns,
            held=tuple(held),
            presets=tuple(presets_that_suit(catalogue, offers.suits)),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        known = self.known
        return {
            "name": self.name,
            "spec": attrs.asdict(self.spec),
            "verified": self.verified,
            "ships": self.ships,
            "published": None if known is None else {"family": known.told, **attrs.asdict(known.published)},
            "device": str(self.device),
            "batch": self.batch,
            "length": self.length,
            "memory": [
                {
                    "dtype": one.dtype,
                    "quantize": one.quantize,
                    "weights": one.fit.weights,
                    "step": one.fit.work,
                    "cache": one.fit.cache.device,
                    "together": one.fit.device(),
                    "fits": one.here,
                    "problems": one.problems,
                }
                for one in self.held
            ],
            "presets": [name for name, _ in self.presets],
        }


def _source(name: str, catalogue: Catalogue) -> str | Mapping[str, Any]:
    """Return a folder, shipped name or hub id, or the config.json of a geometry."""
    offered = geometries(catalogue)
    if name in offered:
        return offered[name]
    if name in shipped_checkpoints(catalogue) or Path(name).expanduser().is_dir():
        return name
    return hub_id(name, catalogue)


def _held(
    dtype: str,
    quantize: str | None,
    weights: Weights,
    length: int,
    batch: int,
    device: torch.device,
    catalogue: Catalogue,
) -> HeldAs:
    """Return what a run of the default preset takes in one way, half of the canvas prompt."""
    size = max(1, length // 2)
    config = catalogue.configure(DEFAULT_PRESET, settings={"gen_length": size, "block_length": min(size, _BLOCK)})
    components, machine = Components.resolve(config, catalogue), Machine.here()
    found = fits(catalogue, components, weights.spec, batch, length, device, weights.dtype, weights.bytes)
    fit = next(one for one in found if one.store == config.cache.name)
    here = not weights.problems and fit.fits(machine.device(device), machine.devices[0])
    return HeldAs(dtype, quantize, fit, here, (*weights.problems, *fit.problems))


def presets_that_suit(catalogue: Catalogue, suits: Iterable[str]) -> list[tuple[str, str]]:
    """Return the presets of a family's procedures, by name or beginning, and then the general ones, each with its line."""
    names = catalogue.names("preset")
    own = [name for name in names if any(name == one or (one.endswith("/") and name.startswith(one)) for one in suits)]
    general = [name for name in _GENERAL if name in names and name not in own]
    return [(name, catalogue.preset(name).summary) for name in (*own, *general)]
