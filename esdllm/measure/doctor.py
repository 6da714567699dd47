"""What this machine can serve, and what a model and a canvas would take of its memory. Nothing is loaded or allocated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import attrs
import torch

from esdllm.config import ComponentConfig
from esdllm.errors import ConfigError, InputError
from esdllm.machine import Fit
from esdllm.planning.schedule import Planner
from esdllm.plugins.auto import at_defaults
from esdllm.plugins.capabilities import attention_problems
from esdllm.plugins.catalogue import Catalogue
from esdllm.plugins.loader import BrokenPlugin, disabled_names, leaving_out
from esdllm.runtime.components import Components
from esdllm.runtime.footprint import working_bytes
from esdllm.views import ModelSpec

__all__ = [
    "EXTRAS",
    "BrokenPlugin",
    "Package",
    "Serving",
    "attention_backends",
    "fits",
    "packages",
    "sound_catalogue",
]

EXTRAS: Mapping[str, tuple[str, str]] = {
    "matplotlib": ("plot", "pictures: --plot, esdllm analyze --out"),
    "optuna": ("tune", "esdllm tune"),
    "lm-eval": ("eval", "esdllm lm-eval"),
    "starlette": ("serve", "esdllm serve"),
    "uvicorn": ("serve", "esdllm serve"),
    "prometheus-client": ("serve", "esdllm serve"),
    "xformers": ("xformers", "the attention backend xformers"),
}
"""Optional package: the extra that brings it, and what it is for."""


@attrs.frozen
class Package:
    """An optional package."""

    name: str
    version: str | None
    """None if it is not installed"""
    extra: str
    purpose: str


def packages() -> list[Package]:
    """Return the optional packages, installed or not."""
    return [Package(name, _version(name), extra, purpose) for name, (extra, purpose) in EXTRAS.items()]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def sound_catalogue() -> tuple[Catalogue, Sequence[BrokenPlugin]]:
    """Return the catalogue without the plugins that are broken, for which every other command refuses to work, and those.

    Raises:
        PluginError: what is wrong cannot be mended by leaving a plugin out.
    """
    broken: list[BrokenPlugin] = []
    catalogue = leaving_out(broken, lambda found: Catalogue(attrs.evolve(found, blocked=disabled_names())))
    return catalogue, broken


@attrs.frozen
class Serving:
    """A component, and why it cannot serve."""

    name: str
    problems: tuple[str, ...]
    """empty if it can"""


def attention_backends(
    catalogue: Catalogue, components: Components, spec: ModelSpec, device: torch.device, dtype: torch.dtype
) -> list[Serving]:
    """Return whether each attention backend can serve a model: the configuration's own as it is set, others at defaults."""
    found = at_defaults(catalogue)
    if components.config.attention.name in found:
        found[components.config.attention.name] = components.attention
    return [
        Serving(
            name, (backend,) if isinstance(backend, str) else tuple(attention_problems(backend, spec, device, dtype))
        )
        for name, backend in found.items()
    ]


def fits(
    catalogue: Catalogue,
    components: Components,
    spec: ModelSpec,
    batch: int,
    length: int,
    device: torch.device,
    dtype: torch.dtype,
    weights: int,
) -> list[Fit]:
    """Return what `batch` rows of `length` columns would take with each cache store, beside `weights` bytes of weights.

    Prompt and answer have `length` columns; padding on their left, where there is any, comes on top.

    The configuration's own store is as it is set, the others are at their defaults.

    Raises:
        InputError: the canvas leaves no room for a prompt before `gen_length`.
        ConfigError: settings contradict each other.
    """
    config = components.config
    if length <= config.gen_length:
        raise InputError(
            f"a canvas of {length} has no room for a prompt before gen_length = {config.gen_length}; give a longer one"
        )
    rows, prompt = batch * (2 if config.cfg_scale else 1), length - config.gen_length
    layout = components.layout(prompt, spec, batch, device)
    work = working_bytes(spec, rows, layout.length, config.block_length, dtype, device)
    found = []
    for name in catalogue.names("cache"):
        own = name == config.cache.name
        store = components.cache if own else catalogue.build("cache", ComponentConfig(name))
        chosen = attrs.evolve(components, cache=store)
        planner = chosen.planner(layout, spec.n_layers)
        shape = chosen.cache_shape(spec, planner.skip_layers(), rows, layout.length, device, dtype)
        problems = (*_contradictions(planner), *store.problems(shape))
        found.append(Fit(name, problems, store.memory(shape), weights, work))
    return found


def _contradictions(planner: Planner) -> Iterator[str]:
    """Yield why a plan cannot be made."""
    try:
        planner.forecast()
    except ConfigError as error:
        yield str(error)
