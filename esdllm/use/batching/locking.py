"""Keeping a run to one process: a lock of the operating system's, which ends with the process that holds it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from esdllm.errors import InputError, UnavailableError

__all__ = ["locked"]


@contextmanager
def locked(folder: Path, output: Path) -> Iterator[None]:
    """Hold a run's folder, beside its `output`, for this caller alone.

    A file beside them, `FOLDER.lock`, says who holds it, and is gone afterwards. Whoever is killed holds nothing any more.

    Raises:
        UnavailableError: another process or thread holds it; says which.
        InputError: nothing can be written there.
    """
    lock = folder.with_name(folder.name + ".lock")
    try:
        if not lock.parent.exists():
            lock.parent.mkdir(parents=True, exist_ok=True)
        file = _taken(lock)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}; name another --output") from error
    if file is None:
        raise UnavailableError(f"{_holder(lock)} is writing {output}; wait for it, or name another --output")
    try:
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        if sys.platform != "win32":  # where no open file can be removed
            lock.unlink(missing_ok=True)
        file.close()
        if sys.platform == "win32":
            lock.unlink(missing_ok=True)


def _taken(lock: Path) -> IO[bytes] | None:
    """Return the lock's file, held and empty; None if another holds it."""
    while True:
        file = lock.open("a+b", buffering=0)
        try:
            if not _held(file):
                file.close()
                return None
            here = lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except OSError:
            file.close()
            raise
        if here:
            file.truncate(0)
            return file
        file.close()  # who held it removed it between our opening and our locking


def _holder(lock: Path) -> str:
    try:
        return lock.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"


if sys.platform == "win32":
    import msvcrt

    def _held(file: IO[bytes]) -> bool:
        """Return whether the file could be locked, far behind what it says."""
        file.seek(1 << 30)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        finally:
            file.seek(0)
        return True

else:
    import fcntl

    def _held(file: IO[bytes]) -> bool:
        """Return whether the file could be locked."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
