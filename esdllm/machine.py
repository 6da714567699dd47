"""This machine: where a model can compute, what is free there, and what fits in it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator

import attrs
import psutil
import torch

from esdllm.views import Memory

__all__ = ["Device", "Fit", "Machine"]


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
