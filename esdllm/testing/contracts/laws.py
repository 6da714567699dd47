"""What the checks share: a law that fails says which and with what values; what every kernel must hold to."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from esdllm.plugins.capabilities import INTERFACES
from esdllm.plugins.members import member_fault
from esdllm.runtime.faults import change_fault, copied, numbers, tensor_fault
from esdllm.testing.memory import TensorMemory

__all__ = ["called", "close", "kernel_laws", "law", "member_laws", "of_rows", "pure", "row_laws", "tensor_law"]

ViewType = TypeVar("ViewType", bound=tuple[Any, ...])


def law(holds: bool, sentence: str) -> None:
    """Return if a law holds.

    Raises:
        AssertionError: it does not; says `sentence`.
    """
    if not holds:
        raise AssertionError(sentence)


def called(component: Any) -> str:
    """Return what to call a component in a sentence: as it is built, cut short."""
    text = repr(component)
    return text if len(text) <= 100 else f"{text[:97]}..."


def member_laws(kind: str, component: Any) -> str:
    """Return what to call a component, having seen that it has the members of its kind, and none that nearly is one.

    Raises:
        AssertionError: it lacks one, has half of a protocol, or a misspelt member; names it.
    """
    law(not (fault := member_fault(component, INTERFACES[kind])), f"{(who := called(component))} {fault}")
    return who


def tensor_law(who: str, what: str, x: Any, shape: Sequence[int], dtype: torch.dtype) -> None:
    """Return if `x` is a tensor of a shape and dtype.

    Raises:
        AssertionError: it is not; says what it is.
    """
    law(not (fault := tensor_fault(what, x, shape, dtype)), f"{who} {fault}")


def close(found: Any, expected: Any, tolerance: float = 1e-4) -> bool:
    """Return whether two trees of tensors agree: integers and bools exactly, floats to `tolerance`."""
    mine, theirs = tree_leaves(found), tree_leaves(expected)
    return len(mine) == len(theirs) and all(_close(a, b, tolerance) for a, b in zip(mine, theirs, strict=True))


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True)


def of_rows(view: ViewType, rows: Sequence[int]) -> ViewType:
    """Return a view of some of its rows, in the order given; what has no rows stays."""
    made = (x[list(rows)] if isinstance(x, Tensor) and x.dim() else x for x in view)
    return type(view)(*made)


def pure(who: str, call: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a call that checks that it leaves its view as it was."""

    def looked_at(view: tuple[Any, ...]) -> Any:
        before = copied(view)
        found = call(view)
        law(not (fault := change_fault(view, before)), f"{who} {fault}")
        return found

    return looked_at


def kernel_laws(who: str, call: Callable[[Any], Any], view: tuple[Any, ...]) -> Any:
    """Return `call(view)`, having checked what every kernel must hold to.

    It changes none of its inputs, keeps nothing of what a call made, gives the same for the same, reads nothing from the
    device (on the meta device any read raises), and compiles into one graph that gives what eager gives.

    Raises:
        AssertionError: one of these does not hold.
    """
    found = pure(who, call)(view)
    with TensorMemory() as taken:
        again = call(view)
        law(
            close(again, found, 0.0),
            f"{who} is not deterministic: {numbers(found)}, then {numbers(again)} for one input",
        )
        del again
        if taken.held:
            gc.collect()  # what is in a circle is not kept, only not yet gone
        law(not taken.held, f"{who} keeps {taken.held} bytes of tensors that a call made; a kernel is a pure function")
    _reads_no_device(who, call, view, found)
    _compiles(who, call, view, found)
    return found


def _reads_no_device(who: str, call: Callable[[Any], Any], view: tuple[Any, ...], found: Any) -> None:
    try:
        on_meta = call(tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, view))
    except Exception as error:
        raise AssertionError(
            f"{who} reads the device or makes tensors on another: on the meta device it raised "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    for mine, theirs in zip(tree_leaves(on_meta), tree_leaves(found), strict=True):
        if isinstance(theirs, Tensor):
            law(
                mine.is_meta and mine.shape == theirs.shape and mine.dtype == theirs.dtype,
                f"{who} gives {tuple(mine.shape)} {mine.dtype} on {mine.device}, given {tuple(theirs.shape)} "
                f"{theirs.dtype} from inputs of the same shapes with numbers; output follows input in shape and device",
            )


def _compiles(who: str, call: Callable[[Any], Any], view: tuple[Any, ...], found: Any) -> None:
    torch._dynamo.reset()
    try:
        compiled = torch.compile(call, backend="eager", fullgraph=True, dynamic=False)(view)
    except Exception as error:
        raise AssertionError(
            f"{who} does not compile into one graph: {type(error).__name__}: {_first_line(error)}"
        ) from error
    finally:
        torch._dynamo.reset()
    law(
        close(compiled, found),
        f"{who} gives {numbers(compiled)} compiled, and {numbers(found)} eager; they must be equal",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or "no message").split("\n")[0]


def row_laws(who: str, call: Callable[[Any], Any], view: tuple[Any, ...], tolerance: float = 1e-4) -> None:
    """Return if a row of a batch is the row alone, and permuted rows permute; `view` has three rows or more.

    Raises:
        AssertionError: what a row gets depends on the rows beside it, or on its place.
    """
    found = call(view)
    for rows, sentence in (
        ([1], "a row alone is not the row in its batch"),
        ([2, 0, 1], "permuted rows do not permute"),
    ):
        expected = tree_map(lambda x, rows=rows: x[rows], found)
        given = call(of_rows(view, rows))
        law(close(given, expected, tolerance), f"{who}: {sentence}: {numbers(given)}, not {numbers(expected)}")
