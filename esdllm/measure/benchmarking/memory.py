"""The most memory that a piece of work takes, and how long it waits for a processor that others use."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import torch

from esdllm.measure.benchmarking.report import PeakMemory
from esdllm.runtime.allocator import give_back

__all__ = ["MemoryMeter", "Waiting"]

_SCHEDULER = Path("/proc/self/schedstat")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class MemoryMeter:
    """Measures from when it is made to `read`. Meters must not overlap: the peak that they read is the process's one."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self._before = torch.cuda.memory_allocated(device)
            self._aside = _set_aside(device)
            return
        give_back()
        self._before = psutil.Process().memory_info().rss
        self._reset = _forget_peak()

    def read(self) -> PeakMemory | None:
        """Return by how much memory was larger at the most than at the beginning; None if the system does not tell.

        What a CUDA graph computes with counts as held: the allocator sees it while a step is recorded, and not when it is
        replayed, but gives it to nobody else.
        """
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            held = torch.cuda.memory_allocated(self._device) + _set_aside(self._device) - self._aside
            grown = max(held, torch.cuda.max_memory_allocated(self._device)) - self._before
            return PeakMemory(
                grown, "growth of torch.cuda.max_memory_allocated, or of what is held with CUDA graphs' own"
            )
        peak = _peak() if self._reset else None
        return None if peak is None else PeakMemory(max(0, peak - self._before), "growth of the peak resident size")


class Waiting:
    """Measures from when it is made to `read` for how much of the time the main thread could have run but had no processor."""

    def __init__(self) -> None:
        self._before, self._started = self._waited(), time.perf_counter()

    def read(self) -> float | None:
        """Return the share of the time; None where the system does not tell."""
        now, gone = self._waited(), time.perf_counter() - self._started
        return None if now is None or self._before is None else (now - self._before) / 1e9 / gone

    @staticmethod
    def _waited() -> int | None:
        """Return the nanoseconds so far."""
        try:
            return int(_SCHEDULER.read_text(encoding="ascii").split()[1])
        except (OSError, ValueError, IndexError):
            return None


def _set_aside(device: torch.device) -> int:
    """Return the bytes of memory pools of CUDA graphs that no tensor lies in: they wait for a replay."""
    index = torch.cuda.current_device() if device.index is None else device.index
    pools = [one for one in torch.cuda.memory_snapshot() if one["device"] == index and one["segment_pool_id"] != (0, 0)]
    return sum(one["total_size"] - one["allocated_size"] for one in pools)


def _forget_peak() -> bool:
    """Make the peak resident size the present one; return whether that could be done (on Linux it can)."""
    try:
        _RESET.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def _peak() -> int | None:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)
