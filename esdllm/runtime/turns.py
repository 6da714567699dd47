"""One run at a time over what only one run can use: other threads wait for their turn, a run cannot wait for itself."""

from __future__ import annotations

from threading import Lock, Thread, current_thread
from types import TracebackType

from esdllm.errors import InputError

__all__ = ["Turn"]


class Turn:
    """A lock that is held by a run: by the thread that asked for it, and by a thread that this one lends it to.

    Another thread waits. A thread of the run itself, which would wait for ever, is refused.
    """

    def __init__(self) -> None:
        self._free = Lock()
        self._holders: tuple[Thread, ...] = ()
        self._guest: Thread | None = None

    def take(self) -> None:
        """Wait until nobody decodes, and hold the turn until `give_back`.

        Raises:
            InputError: this thread holds it already, itself or through an open stream.
        """
        if current_thread() in self._holders:
            raise InputError(
                "this engine is decoding already; close its open stream first, or make another engine: what an observer or "
                "the reader of a stream asks of the engine that it is shown would wait for itself"
            )
        self._free.acquire()
        self._holders = (current_thread(),)

    def lend(self, thread: Thread) -> None:
        """Let another thread make the run that the turn was taken for."""
        self._holders, self._guest = (*self._holders, thread), thread

    def give_back(self) -> None:
        """Let the next one decode; any thread may say so."""
        self._holders, self._guest = (), None
        self._free.release()

    def __enter__(self) -> None:
        if current_thread() is self._guest:
            self._guest = None  # for one run; what this run asks of the engine is refused as anybody's is
        else:
            self.take()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._holders[:1] == (current_thread(),):  # who lent it gives it back
            self.give_back()
