"""Keys, values and remembered tensors in a file; two layers at a time in memory."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from attrs import validators
from numpy.typing import NDArray
from torch import Tensor

from esdllm import CacheShape, Memory, UnavailableError, option
from esdllm_backends.cache import streamed
from esdllm_backends.cache.dense import DenseStore
from esdllm_backends.cache.streamed import LayerTensor, StreamedCache, Tiers

Bytes = NDArray[np.uint8]


@attrs.frozen
class DiskStore(DenseStore):
    """As dense, but in a file: memory holds two layers, read ahead, and what else `memory_bytes` allows.

    For models on the CPU, and canvases beyond its memory. The file has no name and its room is reserved at the start, so
    that it ends with its process, however that ends. Reads and writes are explicit; what the system caches of the file
    beside that is the system's own, and free for others to take.
    """

    folder: str | None = option(
        "where the file is made. Not given: the system's folder for temporary files", default=None
    )
    memory_bytes: int | None = option(
        "most bytes in memory; as many layers as fit stay there. Not given: the least",
        validators.optional(validators.gt(0)),
        default=None,
    )

    @property
    def place(self) -> Path:
        """The folder."""
        return Path(tempfile.gettempdir() if self.folder is None else self.folder)

    def problems(self, shape: CacheShape) -> list[str]:
        """Return why a file cannot serve here; empty if it can."""
        found = streamed.problems(shape, "memory_bytes", self.memory_bytes)
        if shape.device.type != "cpu":
            found.append(f"the model is on {shape.device}; it serves models on the CPU")
        if not hasattr(os, "posix_fallocate"):
            found.append("this system cannot reserve room for a file (posix_fallocate); use another store")
        return found + self._folder_problems(self.memory(shape).disk)

    def _folder_problems(self, needed: int) -> list[str]:
        if not self.place.is_dir():
            return [f"there is no folder {self.place}; make it, or name another as cache.folder"]
        if not os.access(self.place, os.W_OK | os.X_OK):
            return [f"the folder {self.place} is not writable; name another as cache.folder"]
        if (free := shutil.disk_usage(self.place).free) < needed:
            return [
                f"the cache takes {needed:,} bytes of disk, and {self.place} has {free:,}; name another as cache.folder"
            ]
        return []

    def memory(self, shape: CacheShape) -> Memory:
        """Return what it takes."""
        tiers = Tiers.within(shape, self.memory_bytes)
        return Memory(tiers.near, disk=tiers.far)

    def allocate(self, shape: CacheShape) -> StreamedCache:
        """Return an empty cache.

        Raises:
            UnavailableError: the room could not be reserved.
        """
        tiers = Tiers.within(shape, self.memory_bytes)
        return StreamedCache(tiers, FileTransfers(tiers, self.place))


class FileTransfers:
    """Reads and writes a file on one thread of its own, one after the other."""

    def __init__(self, tiers: Tiers, folder: Path) -> None:
        shape = tiers.shape
        self._file = _NamelessFile(folder, tiers.far)
        self._offsets: dict[LayerTensor, int] = {}
        offset = 0
        for tensor, width in tiers.tensors().items():
            self._offsets[tensor] = offset
            offset += shape.rows * shape.length * width * shape.dtype.itemsize
        self._worker = ThreadPoolExecutor(1, "esdllm-disk")
        self._begun: deque[tuple[int, Future[None]]] = deque()
        self._count = 0
        self._last: dict[LayerTensor, int] = {}
        """the number of the last one begun for a tensor"""

    def fetch(self, tensor: LayerTensor, near: Tensor) -> None:
        """Begin to read a tensor."""
        self._begin(tensor, self._file.read, _bytes(near), self._offsets[tensor])

    def clear(self, tensor: LayerTensor, near: Tensor) -> None:
        """Begin to zero a buffer."""
        self._begin(tensor, _bytes(near).fill, 0)

    def write_back(self, tensor: LayerTensor, near: Tensor, index: Tensor | None) -> None:
        """Begin to write rows, or all."""
        offset = self._offsets[tensor]
        if index is None:
            self._begin(tensor, self._file.write, [(_bytes(near), offset)])
            return
        index = index.unique()
        rows, each = _bytes(near.index_select(0, index)), near.shape[1] * near.itemsize
        found = [(rows[i * each : j * each], offset + int(index[i]) * each) for i, j in _runs(index)]
        self._begin(tensor, self._file.write, found)

    def wait(self, tensor: LayerTensor) -> None:
        """Wait.

        Raises:
            UnavailableError: a read or write has failed since the last wait.
        """
        last = self._last.get(tensor, -1)
        try:
            while self._begun and self._begun[0][0] <= last:
                self._begun.popleft()[1].result()
        except OSError as error:
            raise UnavailableError(f"the cache's file cannot be used any more: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file, which is its end."""
        self._worker.shutdown(cancel_futures=True)
        self._file.close()

    def _begin(self, tensor: LayerTensor, work: Callable[..., None], *arguments: Any) -> None:
        self._begun.append((self._count, self._worker.submit(work, *arguments)))
        self._last[tensor] = self._count
        self._count += 1


class _NamelessFile:
    """A file that no folder lists, its room reserved. It ends when closed, collected, or with the process."""

    def __init__(self, folder: Path, size: int) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="esdllm-", dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise UnavailableError(
                f"cannot make a file in {folder}: {error.strerror}; name another as cache.folder"
            ) from error
        self.close = weakref.finalize(self, self._file.close)
        try:
            if size:
                os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            self.close()
            raise UnavailableError(
                f"cannot reserve {size:,} bytes of disk in {folder}: {error.strerror}; name another as cache.folder"
            ) from error

    def read(self, into: Bytes, offset: int) -> None:
        """Fill `into` from `offset`."""
        left = into.data
        while left:
            if not (count := os.preadv(self._file.fileno(), [left], offset)):
                raise OSError(errno.EIO, "it was cut short")
            left, offset = left[count:], offset + count

    def write(self, pieces: list[tuple[Bytes, int]]) -> None:
        """Write each piece at its offset."""
        for piece, offset in pieces:
            left = piece.data
            while left:
                count = os.pwrite(self._file.fileno(), left, offset)
                left, offset = left[count:], offset + count


def _bytes(x: Tensor) -> Bytes:
    """Return the memory of a contiguous tensor, in one row."""
    found: Bytes = x.reshape(-1).view(torch.uint8).numpy()
    return found


def _runs(index: Tensor) -> list[tuple[int, int]]:
    """Return the ranges of places at which ascending numbers (M,) follow each other without a gap."""
    ends = (index.diff() != 1).nonzero()[:, 0].add(1).tolist()
    return list(zip([0, *ends], [*ends, index.shape[0]], strict=True)) if index.shape[0] else []
