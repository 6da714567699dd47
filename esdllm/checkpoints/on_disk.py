"""Checkpoints on this disk: in the hub's cache, and in folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs

from esdllm.checkpoints.families import UnreadError, recognised
from esdllm.checkpoints.published import known_checkpoints
from esdllm.checkpoints.reading import json_object
from esdllm.checkpoints.stored import has_weights
from esdllm.errors import CheckpointError
from esdllm.plugins.catalogue import Catalogue

__all__ = ["OnDisk", "cached_whole", "in_folders", "in_hub_cache"]


@attrs.frozen
class OnDisk:
    """A checkpoint on this disk."""

    name: str
    """as `load_model` takes it: a hub id, or a folder"""
    folder: Path
    size: int
    """bytes of its files"""
    complete: bool
    """whether its weights are there, all that its index names"""
    family: str | None
    """the one that reads it; None where none does, or the user is to say which"""
    problem: str = ""
    """why there is no family"""


def in_hub_cache(catalogue: Catalogue) -> list[OnDisk]:
    """Return the models of the hub's cache that some family reads, or might where the user says so; sorted by name."""
    found = []
    for repo in _cached():
        newest = max(repo.revisions, key=lambda revision: revision.last_modified, default=None)
        config = newest and newest.snapshot_path / "config.json"
        if newest is not None and config is not None and config.is_file():
            found.append(_described(repo.repo_id, newest.snapshot_path, newest.size_on_disk, catalogue))
    return sorted((one for one in found if one is not None), key=lambda one: one.name)


def in_folders(folders: Iterable[Path], catalogue: Catalogue) -> list[OnDisk]:
    """Return the checkpoints that folders are or hold in the first level below them; sorted by name."""
    found = {}
    for folder in folders:
        for place in (folder, *_below(folder)):
            if (place / "config.json").is_file():
                size = sum(file.stat().st_size for file in place.iterdir() if file.is_file())
                if one := _described(str(place), place, size, catalogue):
                    found[place.resolve()] = one
    return sorted(found.values(), key=lambda one: one.name)


def cached_whole(name: str) -> bool:
    """Return whether the weights of a hub id are in the hub's cache, all of them; nothing is asked of the hub."""
    from huggingface_hub import try_to_load_from_cache

    try:
        config = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no hub id
        return False
    return isinstance(config, str) and _whole(Path(config).parent)


def _cached() -> Iterable[Any]:
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir  # slow to import

    try:
        return [repo for repo in scan_cache_dir(constants.HF_HUB_CACHE).repos if repo.repo_type == "model"]
    except CacheNotFound:
        return []


def _below(folder: Path) -> Iterator[Path]:
    try:
        yield from (place for place in sorted(folder.iterdir()) if place.is_dir())
    except OSError:  # one that may not be read holds nothing for us
        return


def _described(name: str, folder: Path, size: int, catalogue: Catalogue) -> OnDisk | None:
    """Return what is told of a folder with a config.json; None if it is no model that a family might read."""
    known = known_checkpoints(catalogue).get(name)
    try:
        config = json_object(folder / "config.json")
    except CheckpointError as error:
        return OnDisk(name, folder, size, False, None, str(error))
    if "model_type" not in config:  # a tokenizer's or another tool's
        return None
    try:
        family, problem = (known.family if known else recognised(folder, config, catalogue)), ""
    except UnreadError:
        return None
    except CheckpointError as error:
        family, problem = None, str(error)
    return OnDisk(name, folder, size, _whole(folder), family, problem)


def _whole(folder: Path) -> bool:
    """Return whether all files of the weights are there."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return has_weights(folder)
    try:
        names = set(map(str, json_object(index).get("weight_map", {}).values()))
    except (CheckpointError, AttributeError):
        return False
    return bool(names) and all((folder / name).is_file() for name in names)
