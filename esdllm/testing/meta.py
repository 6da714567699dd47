"""Runs on the meta device, where any read raises, in which no shape is found twice."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["KnownShapes"]

_BY_VALUE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class _Form(NamedTuple):
    """Of a tensor on the meta device: all that there is to it."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class KnownShapes(TorchDispatchMode):
    """Remembers, inside a `with` block, what form each operator's output has, by the operator and the forms of its inputs.

    On the meta device torch finds an output's form in Python, which takes longer than to compute a tiny model's numbers. A
    call is made as ever, and raises as ever, where it reads the device, writes in place, makes a view, gives anything but
    one tensor, or has a tensor elsewhere among its inputs.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: dict[Hashable, _Form] = {}
        self._pure: dict[Any, bool] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return what an operator gives."""
        kwargs = kwargs or {}
        if func not in self._pure:
            self._pure[func] = _is_pure(func)
        key = self._pure[func] and _key(func, args, kwargs)
        if not key:
            return func(*args, **kwargs)
        if (form := self._known.get(key)) is not None:
            return torch.empty_strided(form.shape, form.stride, dtype=form.dtype, device="meta")
        made = func(*args, **kwargs)
        if isinstance(made, Tensor) and made.is_meta:
            self._known[key] = _Form(tuple(made.shape), made.stride(), made.dtype)
        return made


def _is_pure(func: Any) -> bool:
    """Return whether an operator's output follows from its inputs' forms, and shares no memory with them."""
    schema = func._schema
    return not _BY_VALUE & set(func.tags) and all(x.alias_info is None for x in (*schema.arguments, *schema.returns))


def _key(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable | None:
    """Return what an output's form follows from, or None if a tensor among the inputs is elsewhere."""
    try:
        return func, _form_of(tuple(args)), _form_of(tuple(kwargs.items()))
    except LookupError:
        return None


def _form_of(x: Any) -> Hashable:
    """Return an input's form: a tensor's, or what else is given, with its type, since True equals 1.

    Raises:
        LookupError: a tensor is elsewhere, or of a class of its own, which decides by itself what it gives.
    """
    if isinstance(x, Tensor):
        if not x.is_meta or type(x) not in (Tensor, torch.nn.Parameter):
            raise LookupError
        return _Form(tuple(x.shape), x.stride(), x.dtype)
    if isinstance(x, (list, tuple)):
        return tuple(map(_form_of, x))
    return type(x), x
