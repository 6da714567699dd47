"""Keys, values and remembered tensors in the host's memory; two layers at a time on the device."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from attrs import validators
from torch import Tensor

from esdllm import CacheShape, Memory, option
from esdllm_backends.cache import streamed
from esdllm_backends.cache.dense import DenseStore
from esdllm_backends.cache.streamed import LayerTensor, StreamedCache, Tiers, Transfers


@attrs.frozen
class OffloadedStore(DenseStore):
    """As dense, but in the host's memory: the device holds two layers, fetched ahead, and what else `device_bytes` allows.

    For a GPU whose memory the cache does not fit. Only what changed is written back; what is read is what dense would
    give. On a CPU it works and gains nothing, for host and device are one memory. Not measured on a GPU.
    """

    device_bytes: int | None = option(
        "most bytes on the device; as many layers as fit stay there. Not given: the least",
        validators.optional(validators.gt(0)),
        default=None,
    )

    def problems(self, shape: CacheShape) -> list[str]:
        """Return why layers cannot be moved here; empty if they can."""
        found = streamed.problems(shape, "device_bytes", self.device_bytes)
        if shape.device.type not in ("cuda", "cpu", "meta"):
            found.append(f"the model is on {shape.device}; it serves models on CUDA devices and on the CPU")
        return found

    def memory(self, shape: CacheShape) -> Memory:
        """Return what it takes; on a GPU, pinned memory is rounded up as PyTorch does, and staging counts."""
        tiers = Tiers.within(shape, self.device_bytes)
        on_gpu = shape.device.type == "cuda"
        return Memory(tiers.near, CudaTransfers.host_bytes(tiers) if on_gpu else tiers.far)

    def allocate(self, shape: CacheShape) -> StreamedCache:
        """Return an empty cache."""
        tiers = Tiers.within(shape, self.device_bytes)
        moved: Transfers = CudaTransfers(tiers) if shape.device.type == "cuda" else PlainTransfers(tiers)
        return StreamedCache(tiers, moved)


class PlainTransfers:
    """Copies within one memory; all is done at once."""

    def __init__(self, tiers: Tiers) -> None:
        shape = tiers.shape
        rows = shape.rows * shape.length
        self.far = {
            tensor: torch.zeros(rows, width, dtype=shape.dtype, device=shape.device)
            for tensor, width in tiers.tensors().items()
        }

    def fetch(self, tensor: LayerTensor, near: Tensor) -> None:
        """Copy a tensor."""
        near.copy_(self.far[tensor])

    def clear(self, tensor: LayerTensor, near: Tensor) -> None:
        """Zero a buffer."""
        near.zero_()

    def write_back(self, tensor: LayerTensor, near: Tensor, index: Tensor | None) -> None:
        """Copy rows, or all."""
        if index is None:
            self.far[tensor].copy_(near)
        else:
            self.far[tensor].index_copy_(0, index, near.index_select(0, index))

    def wait(self, tensor: LayerTensor) -> None:
        """Return: nothing is ever under way."""

    def close(self) -> None:
        """Free the far side."""
        self.far = {}


class _Staging:
    """Pinned memory for rows on their way to a tensor, where they are once `arrived` has happened."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype) -> None:
        self.index = _pinned(rows, dtype=torch.int64)
        self.rows = _pinned(rows, width, dtype=dtype)
        self.arrived = torch.cuda.Event()
        self.tensor: LayerTensor | None = None
        self.count = 0


class CudaTransfers:
    """Copies between pinned host memory and a GPU, on a stream of their own. Not run on a GPU yet, nor measured there.

    Rows go into staging first, one of two for each kind of tensor in turn, and the host puts them in their places before
    the tensor is next fetched or the staging is needed again. So the host runs at most two layers ahead of the device.
    """

    def __init__(self, tiers: Tiers) -> None:
        shape, tensors = tiers.shape, tiers.tensors()
        rows = shape.rows * shape.length
        self._stream = torch.cuda.Stream(shape.device)
        self._done: dict[LayerTensor, torch.cuda.Event] = {}
        self._far = {tensor: _pinned(rows, width, dtype=shape.dtype) for tensor, width in tensors.items()}
        kinds = {name: width for (_, name), width in tensors.items()}
        self._staging = {name: [_Staging(rows, width, shape.dtype) for _ in range(2)] for name, width in kinds.items()}

    @staticmethod
    def host_bytes(tiers: Tiers) -> int:
        """Return the pinned memory: the tensors and the staging, each tensor rounded up to a power of two."""
        shape, tensors = tiers.shape, tiers.tensors()
        rows, item = shape.rows * shape.length, shape.dtype.itemsize
        kinds = {name: width for (_, name), width in tensors.items()}
        staging = [size for width in kinds.values() for size in (rows * width * item, rows * torch.int64.itemsize)]
        sizes = [rows * width * item for width in tensors.values()] + 2 * staging
        return sum(1 << (size - 1).bit_length() for size in sizes)

    def fetch(self, tensor: LayerTensor, near: Tensor) -> None:
        """Begin to copy a tensor to the device."""
        self._settle(tensor)
        self._begin(tensor, lambda: near.copy_(self._far[tensor], non_blocking=True), near)

    def clear(self, tensor: LayerTensor, near: Tensor) -> None:
        """Begin to zero a buffer."""
        self._begin(tensor, near.zero_, near)

    def write_back(self, tensor: LayerTensor, near: Tensor, index: Tensor | None) -> None:
        """Begin to copy rows, or all, to the host."""
        self._settle(tensor)
        if index is None:
            self._begin(tensor, lambda: self._far[tensor].copy_(near, non_blocking=True), near)
            return
        rows = near.index_select(0, index)
        both = self._staging[tensor.name]
        both.reverse()
        staging = both[0]
        if staging.tensor is not None:
            self._settle(staging.tensor)

        def stage() -> None:
            staging.index[: index.shape[0]].copy_(index, non_blocking=True)
            staging.rows[: index.shape[0]].copy_(rows, non_blocking=True)

        staging.arrived = self._begin(tensor, stage, index, rows)
        staging.tensor, staging.count = tensor, index.shape[0]

    def wait(self, tensor: LayerTensor) -> None:
        """Let the device's computing wait; the host does not."""
        if tensor in self._done:
            torch.cuda.current_stream(self._stream.device).wait_event(self._done[tensor])

    def close(self) -> None:
        """Free the pinned memory, once nothing is under way."""
        self._stream.synchronize()
        self._far, self._staging = {}, {}

    def _begin(self, tensor: LayerTensor, copy: Callable[[], object], *used: Tensor) -> torch.cuda.Event:
        """Begin a copy after the computing begun so far; the device memory of `used` stays until it is done."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            copy()
            self._done[tensor] = self._stream.record_event()
        for x in used:
            x.record_stream(self._stream)
        return self._done[tensor]

    def _settle(self, tensor: LayerTensor) -> None:
        """Put a tensor's staged rows in their places."""
        for staging in self._staging[tensor.name]:
            if staging.tensor == tensor:
                staging.arrived.synchronize()
                self._far[tensor].index_copy_(0, staging.index[: staging.count], staging.rows[: staging.count])
                staging.tensor = None


def _pinned(*size: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros(*size, dtype=dtype, pin_memory=True)
