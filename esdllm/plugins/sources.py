"""What a plugin's module may define, told from its source: it is not imported, which may take seconds."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path

__all__ = ["may_name"]

_TAKEN_FROM_ELSEWHERE = ("import *", "__getattr__")


def may_name(point: EntryPoint, text: str) -> bool:
    """Return whether the module of an entry point may define a name that holds `text`.

    False only where its source is at hand, and neither holds the text nor takes names from elsewhere unnamed.
    """
    module, _, attribute = point.value.partition(":")
    module = module.strip()
    if not text or attribute or module in sys.modules:
        return True
    try:
        spec = _found(module)
        if spec is None or not spec.has_location or not (spec.origin or "").endswith(".py"):
            return True
        source = Path(spec.origin or "").read_text(encoding="utf-8")
    except (ImportError, OSError, ValueError):
        return True
    return any(one in source for one in (text, *_TAKEN_FROM_ELSEWHERE))


def _found(module: str) -> ModuleSpec | None:
    """Return where a module is, without importing the packages that it is in."""
    first, *rest = module.split(".")
    spec = find_spec(first)
    for name in rest:
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(f"{spec.name}.{name}", list(spec.submodule_search_locations))
    return spec
