"""What this machine can serve, and what a model and a canvas would take of its memory. Nothing is loaded or allocated."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version

import attrs
import psutil
import torch

from esdllm.config import ComponentConfig
from esdllm.errors import ConfigError, InputError
from esdllm.measure.footprint import working_bytes
from esdllm.planning.schedule import Planner
from esdllm.plugins.auto import at_defaults
from esdllm.plugins.catalogue import Catalogue
from esdllm.plugins.loader import BrokenPlugin, disabled_names, leaving_out
from esdllm.runtime.components import Components
from esdllm.views import Memory, ModelSpec

__all__ = [
    "EXTRAS",
    "BrokenPlugin",
    "Device",
    "Fit",
    "Machine",
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
class Device:
    """Where a model can compute."""

    name: str
    """as `--device` takes it"""
    kind: str
    memory: int
    """bytes in all"""
    free: int
    """bytes that are free now"""


@attrs.frozen
class Machine:
    """The machine, and what of it is free now."""

    python_version: str
    torch_version: str
    cores: int
    threads: int
    """that torch uses"""
    devices: tuple[Device, ...]
    """the CPU first"""

    @classmethod
    def here(cls) -> Machine:
        """Return this machine."""
        memory = psutil.virtual_memory()
        kind = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
        cpu = Device("cpu", kind, memory.total, memory.available)
        return cls(
            python_version=sys.version.split()[0],
            torch_version=torch.__version__,
            cores=_cores(),
            threads=torch.get_num_threads(),
            devices=(cpu, *_gpus()),
        )

    def device(self, device: torch.device) -> Device:
        """Return the device of a tensor."""
        name = "cpu" if device.type == "cpu" else f"{device.type}:{device.index or 0}"
        return next(found for found in self.devices if found.name == name)


def _cores() -> int:
    """Return the cores that this process may use."""
    process = psutil.Process()
    allowed = process.cpu_affinity() if hasattr(process, "cpu_affinity") else None
    return len(allowed) if allowed else psutil.cpu_count() or 1


def _gpus() -> Iterator[Device]:
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        yield Device(f"cuda:{index}", torch.cuda.get_device_name(index), total, free)


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
        Serving(name, (backend,) if isinstance(backend, str) else tuple(backend.problems(spec, device, dtype)))
        for name, backend in found.items()
    ]


@attrs.frozen
class Fit:
    """What a run would take with one cache store, in bytes."""

    store: str
    problems: tuple[str, ...]
    """why the store cannot serve; empty if it can"""
    cache: Memory
    weights: int
    work: int
    """activations and logits of the widest step"""

    def device(self) -> int:
        """Return what the computing device has to hold."""
        return self.weights + self.work + self.cache.device

    def host(self) -> int:
        """Return what the host has to hold beside that."""
        return self.cache.host

    def fits(self, device: Device, cpu: Device) -> bool:
        """Return whether it serves, and fits in what is free now."""
        on_host = self.host() + (self.device() if device.name == "cpu" else 0)
        return not self.problems and self.device() <= device.free and on_host <= cpu.free


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
