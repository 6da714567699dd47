"""How a model is to be loaded: which device holds which layer, in which dtype, in how many bits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import attrs
import torch

from esdllm.errors import ConfigError, UnavailableError, known
from esdllm.views import LoadPlan, ModelSpec

__all__ = ["DTYPES", "DeviceMap", "Placement", "resolve_device", "resolve_dtype"]

DeviceMap: TypeAlias = str | Sequence[str | torch.device] | Mapping[str, str | torch.device]
"""Devices over which layers are spread: "auto" for all GPUs, a list, or a mapping from layers."""

DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Those that models are computed in, by name."""
_LAYERS = re.compile(r"layers\.(\d+)(?:-(\d+))?")
_FORMS = "give 'auto', a list of devices, or a mapping such as {'layers.0-15': 'cuda:0', 'layers.16-31': 'cuda:1'}"


@attrs.frozen
class Placement:
    """Devices that are there: one, several in order, or by name of what they hold."""

    devices: tuple[torch.device, ...]
    """in the order of the layers; empty where `named` says all"""
    named: Mapping[str, torch.device] = attrs.field(factory=dict)
    """by embedding, head, layers.3, layers.0-15"""

    @classmethod
    def of(cls, device: str | torch.device | None = None, device_map: DeviceMap | None = None) -> Placement:
        """Return what a user asked for.

        Raises:
            UnavailableError: a device is not on this machine.
            ConfigError: both or no form of `device_map` was given.
        """
        if device_map is None:
            return cls((resolve_device(device),))
        if device is not None:
            raise ConfigError(f"device = '{device}' and device_map = {device_map!r}; give one of them")
        if device_map == "auto":
            return cls(
                tuple(torch.device("cuda", n) for n in range(torch.cuda.device_count())) or (torch.device("cpu"),)
            )
        if isinstance(device_map, str) or not device_map:
            raise ConfigError(f"device_map = {device_map!r}; {_FORMS}")
        if isinstance(device_map, Mapping):
            return cls((), {name: resolve_device(where) for name, where in device_map.items()})
        return cls(tuple(resolve_device(where) for where in device_map))

    def plan(self, spec: ModelSpec, dtype: torch.dtype, quantize: str | None = None) -> LoadPlan:
        """Return the plan for a model; layers are spread evenly over devices in order.

        Raises:
            ConfigError: a name is unknown, or a layer is left out, named twice, or not there.
        """
        count = spec.n_layers
        layers = self._named_layers(count) or [self.devices[i * len(self.devices) // count] for i in range(count)]
        first, last = self.named.get("embedding", layers[0]), self.named.get("head", layers[-1])
        return LoadPlan(dtype, first, tuple(layers), last, quantize)

    def _named_layers(self, count: int) -> list[torch.device]:
        """Return the device of each layer by `named`; empty if nothing is named."""
        found: dict[int, str] = {}
        for name in self.named:
            for layer in _layers(name, count):
                if layer in found:
                    raise ConfigError(f"device_map names layer {layer} twice, in '{found[layer]}' and '{name}'")
                found[layer] = name
        if self.named and (missing := [str(layer) for layer in range(count) if layer not in found]):
            raise ConfigError(
                f"device_map leaves out layer {', '.join(missing)}; the model has layers 0 to {count - 1}"
            )
        return [self.named[found[layer]] for layer in range(count)] if self.named else []


def _layers(name: str, count: int) -> Iterator[int]:
    """Yield the layers that a name of a mapping stands for."""
    if name in ("embedding", "head"):
        return
    numbers = _LAYERS.fullmatch(name)
    if numbers is None:
        raise ConfigError(f"device_map names '{name}'; it may name embedding, head, layers.3 or layers.0-15")
    first, last = int(numbers[1]), int(numbers[2] or numbers[1])
    if not first <= last < count:
        raise ConfigError(f"device_map names '{name}', but the model has layers 0 to {count - 1}")
    yield from range(first, last + 1)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Return the device to use.

    Raises:
        UnavailableError: no such device on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise UnavailableError(
            f"the device '{device}' is not available here ({reason}); use cpu, or one that is"
        ) from error
    return found


def resolve_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """Return the dtype of a name, with torch's own prefix or without; float32 for None.

    Raises:
        UnavailableError: not one of float32, bfloat16, float16.
    """
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise UnavailableError(f"the dtype '{name}' is not available; {known(name, DTYPES)}")
    return DTYPES[name]
