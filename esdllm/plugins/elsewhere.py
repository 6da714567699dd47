"""Which packages are known to offer components that are not installed."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from esdllm.config.project import DISABLE_VARIABLE
from esdllm.config.settings import read_toml

__all__ = ["offer"]


@cache
def _known() -> dict[str, Any]:
    return read_toml(Path(__file__).with_name("known_plugins.toml"))


def offer(kind: str, name: str) -> str | None:
    """Return a few words on how to get a component that is not on offer here; None if no package is known to have it."""
    package = _known().get(kind, {}).get(name)
    if package is None:
        return None
    try:
        version(package)
    except PackageNotFoundError:
        return f"the package {package} offers it ({_known()['source'][package]})"
    return f"{package} offers it, which is installed but left out by {DISABLE_VARIABLE}"
