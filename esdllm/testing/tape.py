"""A tape that stands for CUDA graphs on any device: what a step calls is recorded once, and replayed without its Python.

A replay knows nothing but what was recorded: the same operators on the same tensors with the same numbers. So what a graph would
not see on a GPU is not seen here either: a tensor that was passed anew, a Python number that changed, a branch. And what cannot
be recorded there (a value read from the device, a constant copied to it) is refused here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esdllm.runtime.engine import Engine
from esdllm.runtime.run import StepFunction

__all__ = ["Tape", "record_steps"]

_WAITS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select", "unique_dim", "_unique2", "equal")
_COPIES = ("lift_fresh", "lift_fresh_copy")


class _Call(NamedTuple):
    """An operator as it was called."""

    function: Any
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    results: list[tuple[int, Tensor]]
    """what it made, by its number among the tensors returned; a replay writes there"""


class _Recorder(TorchDispatchMode):
    """Notes the operators that are called inside, and undoes what they did to tensors that stood before."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if name in _WAITS:
            raise RuntimeError(f"a step reads the device ({name}), which cannot be recorded")
        if name in _COPIES:
            raise RuntimeError(f"a step copies a constant from the host ({name}), which cannot be recorded")
        for x in _written(func, args, kwargs):
            self._before.setdefault(id(x), (x, x.clone()))
        made = func(*args, **kwargs)
        read = {_storage(x) for x in _tensors((args, kwargs))}
        fresh = [(number, x) for number, x in enumerate(_tensors(made)) if _storage(x) not in read]
        if fresh or func._schema.is_mutable:  # what else there is are views, which see what lies beneath
            self.calls.append(_Call(func, args, kwargs, fresh))
        return made

    def undo(self) -> None:
        """Give the tensors that were written to what they held: what is recorded is not run."""
        for x, before in reversed(self._before.values()):  # of views that overlap, what was kept first is put back last
            x.copy_(before)


class Tape:
    """Records steps, as `esdllm.runtime.graphs.Capture` asks for."""

    def __init__(self) -> None:
        self.replays: list[int] = []
        """how often each recording was replayed"""
        self.forgotten = 0
        """how often all was let go of"""

    def prepare(self, work: Callable[[], None]) -> None:
        """Run work that is recorded later."""
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` calls, without lasting effect, and return what calls it again.

        Raises:
            RuntimeError: it does what cannot be recorded on a GPU.
        """
        recorder = _Recorder()
        try:
            with recorder:
                work()
        finally:
            recorder.undo()
        number = len(self.replays)
        self.replays.append(0)

        def replay() -> None:
            self.replays[number] += 1
            for call in recorder.calls:
                _again(call)

        return replay

    def forget(self) -> None:
        """Let go of what was recorded."""
        self.forgotten += 1


def record_steps(engine: Engine) -> Tape:
    """Let an engine record its steps on a tape from now on, and return the tape; the steps run uncompiled.

    Generations must then give the tokens that they give without: the test for authors of components that CUDA graphs can
    record them.
    """
    tape = Tape()
    engine.close()
    engine.step_function = StepFunction(compiled=False, graphs=tape)
    return tape


def _again(call: _Call) -> None:
    made = _tensors(call.function(*call.arguments, **call.named))
    for number, target in call.results:
        target.copy_(made[number])


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors that a call writes to."""
    found: list[Tensor] = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[number] if number < len(args) else kwargs.get(argument.name)
        found += _tensors(value)
    return found


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)
