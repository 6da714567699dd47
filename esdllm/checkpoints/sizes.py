"""Sizes that config.json states, and whether the weights have them, by what their files' headers say of each tensor."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TypeAlias

import attrs

from esdllm.checkpoints.stored import Stored
from esdllm.errors import CheckpointError

__all__ = ["Shape", "Stated", "check_shapes", "other_depth"]

_LAYER = re.compile(r"(.*?\.)([0-9]{1,6})(\..+)")


@attrs.frozen
class Stated:
    """A size that a key of config.json states, such as that of a tensor's axis."""

    key: str
    value: int
    each: int = 1
    """what the axis has for each of it: the features of a head, if the key tells how many heads there are"""
    of: str = ""
    """what that follows from, by its keys"""

    @property
    def size(self) -> int:
        """The length of the axis."""
        return self.value * self.each

    def __str__(self) -> str:
        return f"{self.key} = {self.value}" + (f" times {self.of} = {self.each}" if self.of else "")


Shape: TypeAlias = Sequence[int | Stated]
"""A tensor's shape; which of config.json's keys an axis goes by may be told."""


def check_shapes(held: Mapping[str, Stored], shapes: Mapping[str, Shape]) -> None:
    """Return if tensors have the shapes that config.json says; only headers were read until then.

    Raises:
        CheckpointError: one has not; names the key and its value, and what would fit.
    """
    for name, shape in shapes.items():
        one, said = held.get(name), tuple(axis.size if isinstance(axis, Stated) else axis for axis in shape)
        if one is not None and tuple(one.shape) != said:
            raise CheckpointError(
                f"{one.path.name}: '{one.name}' has the shape {tuple(one.shape)}, but config.json says {said}"
                f"{_by(one, shape, held, shapes)}"
            )


def other_depth(names: Mapping[str, Stored], wanted: Collection[str], layers: Stated) -> str:
    """Return what to say where the weights are of another number of layers than config.json; empty if they are not.

    `names` are those in the files, `wanted` those of the model; layers are told by the number in a name.
    """
    kinds = {(match[1], match[3]) for name in wanted if (match := _LAYER.fullmatch(name))}
    found = [
        (int(match[2]), name) for name in names if (match := _LAYER.fullmatch(name)) and match.group(1, 3) in kinds
    ]
    count, last = len({number for number, _ in found}), max(found, default=(0, ""))
    if count in (0, layers.value) or last[0] != count - 1:
        return ""
    return (
        f"config.json says {layers}, but they are of {count} layers, the last with '{last[1]}' of the shape "
        f"{tuple(names[last[1]].shape)}; {layers.key} = {count} would fit, or if files are missing, download them again"
    )


def _by(one: Stored, shape: Shape, held: Mapping[str, Stored], shapes: Mapping[str, Shape]) -> str:
    """Return the key that a tensor contradicts, and which value would fit all tensors; empty if no key is told."""
    blamed = next((axis for axis, there in _axes(one, shape) if axis.size != there), None)
    if blamed is None:
        return ""
    others = [_axes(other, shapes[name]) for name, other in held.items() if name in shapes]
    fitting = {there / axis.each for axes in others for axis, there in axes if axis.key == blamed.key}
    value = fitting.pop()
    if fitting or not value.is_integer() or value < 1:
        return f", by {blamed}; no {blamed.key} fits all of the weights: download them and config.json again"
    other = f", or another {blamed.of}" if blamed.of else ""
    return f", by {blamed}; {blamed.key} = {value:.0f} would fit the weights{other}"


def _axes(one: Stored, shape: Shape) -> Iterator[tuple[Stated, int]]:
    """Yield the axes that a key is told for, each with its length in the file."""
    for axis, there in zip(shape, one.shape, strict=False):
        if isinstance(axis, Stated) and len(shape) == len(one.shape):
            yield axis, there
