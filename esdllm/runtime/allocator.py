"""What becomes of freed memory on a CPU. Large tensors come and go with every step; giving them back to the system costs time."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["give_back", "keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # parameters of glibc's mallopt


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for what it allocates next; return whether its C library could be told so (glibc).

    Otherwise every large tensor is new memory, whose pages the system clears and maps one by one. It holds for the whole
    process, whose size then stays at its peak, which holes between what is held make larger. So the library leaves it to
    programs; the command `esdllm` does it. Where the environment tells the allocator what to do (a variable `MALLOC_...` or
    `GLIBC_TUNABLES`), nothing is changed.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = _glibc("mallopt")
    return mallopt is not None and bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))


def give_back() -> None:
    """Give freed memory back to the system; elsewhere than with glibc do nothing."""
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(name: str) -> ctypes._CFuncPtr | None:  # type: ignore[name-defined, unused-ignore]
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
