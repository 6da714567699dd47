"""Options of a component: how values become its fields, and which of them hold components."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override

from esdllm.errors import brief, known

__all__ = ["converter", "inner_fields", "option"]

Validator = Callable[[Any, Any, Any], Any]
_BEYOND = 2**63  # of a tensor's whole numbers


def option(
    help: str,
    *validators: Validator,
    default: Any = attrs.NOTHING,
    factory: Callable[[], Any] | None = None,
    converter: Callable[[Any], Any] | None = None,
    tune: Sequence[Any] | Callable[..., Any] | None = None,
    kind: str | None = None,
    part: type | None = None,
) -> Any:
    """Return a field of a component, a frozen attrs class: an option that configuration may set.

    `help` says in a few words what it is: lists, `esdllm explain` and the schema show it. `validators` are attrs', such as
    `attrs.validators.ge(0)`, whose ranges the schema tells. Without `default` or `factory` it must be given.

    `tune` are values that `esdllm tune` tries, or a function of `choose` that returns one. An option of a `kind`, such as
    "importance", holds a component of that kind; one of a `part`, a frozen attrs class with an option of a kind, a list of
    those.
    """
    told = {"help": help, "tune": tune, "kind": kind, "part": part}
    begins = {"default": default} if factory is None else {"factory": factory}
    return attrs.field(
        **begins,
        validator=list(validators) or None,
        converter=converter,
        metadata={name: value for name, value in told.items() if value is not None},
    )


def _strict(kind: type, accepts: tuple[type, ...]) -> Any:
    """Return a structuring hook that converts nothing but an int to a float, and takes no number that a tensor cannot hold."""

    def hook(value: Any, _: Any) -> Any:
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # NumPy's numbers
            value = value.item()
        if isinstance(value, bool) is not (kind is bool) or not isinstance(value, accepts):
            hint = "; write true or false" if kind is bool else ""
            raise ValueError(f"{brief(value)} is not {'an' if kind is int else 'a'} {kind.__name__}{hint}")
        if isinstance(value, int) and not -_BEYOND <= value < _BEYOND:
            raise ValueError(f"{brief(value)} has no room in 64 bits; give a smaller number")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value!r} is no finite number; give one that is")
        return kind(value)

    return hook


converter = cattrs.Converter(forbid_extra_keys=True)
"""Builds components from options; a misspelt or mistyped option is an error."""
for _kind, _accepts in ((int, (int,)), (float, (int, float)), (bool, (bool,)), (str, (str,))):
    converter.register_structure_hook(_kind, _strict(_kind, _accepts))


def _choose(value: Any, choices: Any) -> Any:
    """Return a value that is one of a Literal's."""
    if value not in get_args(choices):
        raise ValueError(f"unknown value {value!r}; {known(str(value), map(str, get_args(choices)))}")
    return value


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


converter.register_structure_hook_func(_is_literal, _choose)


def inner_fields(factory: Any) -> tuple[attrs.Attribute[Any], ...]:
    """Return the options of a component that hold components.

    A field whose metadata has a `kind` holds one component of that kind. A field whose metadata has a `part`, a frozen
    attrs class with a field of a `kind`, holds a list of those; each is written as one flat table, the part's other
    fields beside the component's name and options.
    """
    if not attrs.has(factory):
        return ()
    return tuple(field for field in attrs.fields(factory) if {"kind", "part"} & set(field.metadata))


def _around(factory: type) -> Any:
    """Return the structuring hook of a component with components inside, which come to it built."""
    built = {field.name: override(struct_hook=lambda value, _: value) for field in inner_fields(factory)}
    return make_dict_structure_fn(factory, converter, _cattrs_forbid_extra_keys=True, **built)  # type: ignore[arg-type]


converter.register_structure_hook_factory(lambda kind: bool(inner_fields(kind)), _around)
