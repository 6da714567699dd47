"""What the machine does at best: matrix products, and reading memory. Measured in the same run as what is compared with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import torch

from esdllm.interfaces import ModelAdapter
from esdllm.measure.benchmarking.clock import seconds_of
from esdllm.measure.cost import Roofline

__all__ = ["Peak", "Rate", "measure_peak"]

_CPU_SHAPES = ((512, 1024, 1024), (512, 2048, 2048), (512, 4096, 4096))
_GPU_SHAPES = ((2048, 4096, 4096), (4096, 4096, 4096), (8192, 8192, 8192))
_ROWS = (256, 1024)
_ENOUGH = 0.2  # seconds for each shape, and at least three calls
_READ = 1 << 28  # bytes; more than caches hold


@attrs.frozen
class Rate:
    """What one kind of matrix product reached."""

    what: str
    """its shape, or the model's own layer"""
    gflops: float


@attrs.frozen
class Peak:
    """What was reached."""

    rates: tuple[Rate, ...]
    bandwidth: float
    """10^9 bytes per second, of summing a large tensor"""

    @property
    def best(self) -> Rate:
        """The fastest of the matrix products."""
        return max(self.rates, key=lambda rate: rate.gflops)

    @property
    def roofline(self) -> Roofline:
        """The same as predictions take it."""
        return Roofline(self.best.gflops, self.bandwidth)


def measure_peak(
    device: torch.device,
    dtype: torch.dtype,
    adapter: ModelAdapter | None = None,
    shapes: Sequence[tuple[int, int, int]] | None = None,
    read: int = _READ,
) -> Peak:
    """Return what matrix products of several shapes (n, i) x (i, o) reach, and the rate at which `read` bytes are read.

    An adapter's own first layer takes part, on many rows: its linear layers may be quantised, and then are faster than any
    product of the dtype.
    """
    shapes = shapes or (_GPU_SHAPES if device.type == "cuda" else _CPU_SHAPES)
    with torch.inference_mode():
        rates = [_product(device, dtype, shape) for shape in shapes]
        if adapter is not None and adapter.spec.inside(0):
            rates += [_layer(adapter, rows) for rows in _ROWS]
        return Peak(tuple(rates), _bandwidth(device, read))


def _product(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> Rate:
    rows, inputs, outputs = shape
    x = torch.ones(rows, inputs, device=device, dtype=dtype)
    weight = torch.ones(outputs, inputs, device=device, dtype=dtype)
    seconds = _seconds(lambda: torch.nn.functional.linear(x, weight), device)
    return Rate(f"({rows}, {inputs}) x ({inputs}, {outputs})", 2e-9 * rows * inputs * outputs / seconds)


def _layer(adapter: ModelAdapter, rows: int) -> Rate:
    """Return what the output projection and the feed-forward of the model's first layer reach together."""
    spec = adapter.spec
    hidden = torch.ones(1, rows, spec.hidden, device=adapter.device, dtype=adapter.dtype)
    attended = torch.ones(1, rows, spec.n_heads, spec.head_dim, device=adapter.device, dtype=adapter.dtype)
    seconds = _seconds(lambda: adapter.mix(0, hidden, attended), adapter.device)
    weights = spec.hidden * (spec.n_heads * spec.head_dim + 3 * spec.inside(0))
    return Rate(f"the model's layer on {rows} rows", 2e-9 * rows * weights / seconds)


def _bandwidth(device: torch.device, read: int) -> float:
    x = torch.ones(read // 8, device=device, dtype=torch.int64)
    return 1e-9 * read / _seconds(x.sum, device)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the shortest time of several calls, after one that is not counted: a peak is what can be reached."""
    taken: list[float] = []
    call()
    while len(taken) < 3 or (sum(taken) < _ENOUGH and len(taken) < 1000):
        taken.append(seconds_of(call, device))
    return min(taken)
