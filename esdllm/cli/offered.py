"""The names of what is installed, kept in a file, so that a shell completes them without importing what has them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from esdllm.config.project import DISABLE_VARIABLE
from esdllm.plugins.loader import installed_points

__all__ = ["Offered", "cached_models", "offered", "written"]

Offered = Mapping[str, Mapping[str, Any]]
"""By kind: what each name is, in a line; `options` has that of each `kind.option`, and its default as `--set` takes it."""


def offered() -> Offered:
    """Return the names on offer; those that were kept, unless a plugin was installed, taken away or edited since."""
    key, file = _key(), _file()
    with suppress(OSError, ValueError, TypeError, KeyError):
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] == key:
            return cast(Offered, kept["names"])
    names = _gathered()
    with suppress(OSError):  # a home that cannot be written costs time and nothing else
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(f"{file.name}.{os.getpid()}.part")
        part.write_text(json.dumps({"key": key, "names": names}), encoding="utf-8")
        part.replace(file)
    return names


def _file() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME", "").strip()
    return (Path(cache) if cache else Path.home() / ".cache") / "esdllm" / "names.json"


def _key() -> list[Any]:
    """Return what changes whenever the names may: the plugins, their versions, the newest of their sources."""
    points = installed_points()
    packages = sorted({"esdllm", *(point.value.partition(":")[0].partition(".")[0] for point in points)})
    told = sorted((point.name, point.value, point.dist.version if point.dist else "") for point in points)
    return [sys.version, os.environ.get(DISABLE_VARIABLE, ""), *map(list, told), *map(_newest, packages)]


def _newest(package: str) -> float:
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in Path(folder).rglob("*.py")]
    if spec and not folders and spec.origin:
        files = [Path(spec.origin)]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


def _gathered() -> dict[str, dict[str, Any]]:
    """Return the names by what every sound plugin offers, which imports all of them."""
    from esdllm.checkpoints.loading import shipped_checkpoints
    from esdllm.checkpoints.published import known_checkpoints
    from esdllm.measure.doctor import sound_catalogue
    from esdllm.plugins.catalogue import KINDS

    catalogue, _ = sound_catalogue()
    found: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    for entry in catalogue.entries():
        found[entry.kind][entry.name] = entry.summary
    found["shipped"] = dict.fromkeys(shipped_checkpoints(catalogue), "ships with a plugin")
    found["published"] = {name: one.family for name, one in known_checkpoints(catalogue).items()}
    found["options"] = {
        f"{entry.kind}.{option.name}": [option.help, written(option.default)]
        for entry in catalogue.entries()
        for option in entry.options
    }
    return found


def written(value: Any) -> str:
    """Return a default as `--set` takes it; empty if it has no plain one."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float, str)) else ""


def cached_models() -> Iterator[str]:
    """Yield the hub ids of the models in the hub's cache, by its folders' names."""
    home = os.environ.get("HF_HOME", "").strip() or Path.home() / ".cache" / "huggingface"
    cache = Path(os.environ.get("HF_HUB_CACHE", "").strip() or Path(home) / "hub")
    with suppress(OSError):
        for folder in sorted(cache.glob("models--*--*")):
            yield folder.name.removeprefix("models--").replace("--", "/", 1)
