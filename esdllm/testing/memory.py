"""Counting the memory that tensors take while a piece of code runs, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["TensorMemory"]


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside a `with` block, and not those that stood before it.

        with TensorMemory() as memory:
            engine.generate("Sort 3 1 2.")
        print(memory.peak, memory.held)

    What a kernel takes for itself and gives back before it returns is not seen, nor are tensors in a layout of a kernel's own.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = 0
        """bytes alive now"""
        self.peak = 0
        """the most bytes that were alive at once"""
        self.largest = 0
        """bytes of the largest tensor"""
        self._known: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and count what it made."""
        before = {_storage(x) for x in _tensors((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for x in _tensors(made):
            if _storage(x) not in before:
                self._count(x)
        return made

    def _count(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._known:
            return
        self._known[address] = size
        self.held += size
        self.peak, self.largest = max(self.peak, self.held), max(self.largest, size)
        weakref.finalize(storage, self._forget, address)

    def _forget(self, address: int) -> None:
        self.held -= self._known.pop(address, 0)


def _tensors(tree: Any) -> list[Tensor]:
    """Return the tensors that have a storage, as those in a kernel's own layout do not."""
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor) and x.layout == torch.strided]


def _storage(x: Tensor) -> int:
    address: int = x.untyped_storage()._cdata
    return address
