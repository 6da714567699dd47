"""Whose fault it is: what a component raises within a run is raised under the component's name. The run pays nothing for it."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import torch

from esdllm.config import SECTIONS
from esdllm.errors import EsdllmError, PluginError
from esdllm.foreign import reason
from esdllm.interfaces import Cache, ModelAdapter
from esdllm.runtime.components import Components, titled
from esdllm.runtime.rehearsal import rehearse

__all__ = ["innermost", "naming_culprits"]

_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EPIPE}
"""what a machine lacks, and no component is to blame for"""


@contextmanager
def naming_culprits(
    components: Components, model: ModelAdapter, cache: Callable[[], Cache | None] = lambda: None
) -> Iterator[None]:
    """Raise what a component raises within the block as a PluginError that names it; anything else passes as it is.

    So do errors of esdllm, a Ctrl-C, an exit, and what the machine lacks: memory, or room on a disk.
    """
    try:
        yield
    except (EsdllmError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, torch.OutOfMemoryError):
        raise
    except BaseException as error:  # a panic of a library that is written in Rust is no Exception
        if _of_machine(error):
            raise
        if fault := _broken_contract(components, model):
            raise PluginError(fault) from error
        if who := innermost(error.__traceback__, _titles(components, model, cache())):
            raise PluginError(f"{who} failed: {reason(error)}; check it with esdllm.testing") from error
        raise


def _of_machine(error: BaseException) -> bool:
    return getattr(error, "errno", None) in _MACHINE or "you tried to allocate" in str(error)


def _broken_contract(components: Components, model: ModelAdapter) -> str:
    """Return which component gives what the next cannot use, which then fails in its place."""
    try:
        rehearse(components, model)
    except PluginError as fault:
        return str(fault) if fault.__cause__ is None else ""  # what it raised there may be the device's state
    return ""


def _titles(components: Components, model: ModelAdapter, cache: Cache | None) -> dict[int, str]:
    """Return what to call each object that a run calls, by its identity."""
    titles = {id(getattr(components, section)): components.called(section) for section in SECTIONS}
    for chosen, observer in zip(components.config.observers, components.observers, strict=True):
        titles[id(observer)] = titled("observers", chosen.name, observer)
    titles[id(model)] = titled("model", model.spec.family, model)
    if cache is not None:
        titles[id(cache)] = titled("cache", components.config.cache.name, cache)
    return titles


def innermost(at: TracebackType | None, titles: Mapping[int, str]) -> str | None:
    """Return the title of the innermost object, by its identity, whose method a traceback goes through; None if it is of none."""
    found = None
    while at is not None:
        found = titles.get(id(_owner(at.tb_frame)), found)
        at = at.tb_next
    return found


def _owner(frame: FrameType) -> Any:
    """Return the first argument of a frame's function, which in a method is the object."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
