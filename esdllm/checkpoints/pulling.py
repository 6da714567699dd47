"""Downloads of checkpoints from the hub: weights, configs, tokenizers and templates, and never code or pickles."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn

import attrs

from esdllm.checkpoints.published import known_checkpoints
from esdllm.errors import CheckpointError, UnavailableError, known
from esdllm.plugins.catalogue import Catalogue

__all__ = ["PULLED", "Download", "hub_folder"]

PULLED = ("*.safetensors", "*.json", "*.jinja", "merges.txt", "vocab.txt", "LICENSE*", "README.md")
"""What is fetched of a repository, of its top folder alone."""

_ROOM = 1 << 28  # bytes that stay free beside what is fetched


@attrs.frozen
class Download:
    """What is to be fetched of a repository on the hub."""

    name: str
    """its hub id"""
    revision: str
    """the commit"""
    sizes: Mapping[str, int]
    """bytes of each file that is read"""
    missing: int
    """bytes that are not in the cache yet"""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes.values())

    @classmethod
    def of(cls, name: str, catalogue: Catalogue) -> Download:
        """Return what there is of a hub id, by the hub's list of its files; nothing is fetched.

        Raises:
            CheckpointError: there is no such repository, no access to it, or it holds no safetensors.
            UnavailableError: the hub does not answer.
        """
        from huggingface_hub import HfApi, constants

        if constants.HF_HUB_OFFLINE:
            raise UnavailableError(f"cannot fetch '{name}': HF_HUB_OFFLINE says to stay offline; unset it")
        try:
            info = HfApi().model_info(name, files_metadata=True)
        except Exception as error:  # the hub raises errors of many libraries
            _raise(name, error, catalogue)
        files = {one.rfilename: int(one.size or 0) for one in info.siblings or () if _read(one.rfilename)}
        if not any(file.endswith(".safetensors") for file in files):
            raise CheckpointError(
                f"'{name}' holds no safetensors; weights in other files are pickles, which may run code when they are read"
            )
        if "config.json" not in files:
            raise CheckpointError(f"'{name}' holds no config.json, which says what model it is")
        missing = sum(size for file, size in files.items() if not _cached(name, file, str(info.sha)))
        return cls(name, str(info.sha), files, missing)

    def check_room(self) -> None:
        """Refuse a download that the disk has no room for.

        Raises:
            UnavailableError: says what is free, and what it takes.
        """
        folder = _existing(hub_folder())
        free = shutil.disk_usage(folder).free
        if free < self.missing + _ROOM:
            raise UnavailableError(
                f"'{self.name}' takes {_gigabytes(self.missing)} more, and {folder} has {_gigabytes(free)} free; make room, or "
                "let HF_HOME name a folder on another disk"
            )

    def run(self, catalogue: Catalogue) -> Path:
        """Fetch what is missing, with bars on standard error, and return the folder; one that was stopped goes on.

        Raises:
            CheckpointError: a file cannot be had.
            UnavailableError: the hub stopped answering, or the disk is full.
        """
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(self.name, revision=self.revision, allow_patterns=list(self.sizes)))
        except Exception as error:
            _raise(self.name, error, catalogue)


def _read(file: str) -> bool:
    return "/" not in file and any(fnmatch(file, pattern) for pattern in PULLED)


def _cached(name: str, file: str, revision: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(name, file, revision=revision), str)


def hub_folder() -> Path:
    """Return the hub's cache, where downloads go."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _existing(folder: Path) -> Path:
    """Return the nearest folder above that is there already, and so on the disk that it will be on."""
    return next(place for place in (folder, *folder.parents) if place.exists())


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _raise(name: str, error: Exception, catalogue: Catalogue) -> NoReturn:
    """Raise what the hub's answer means to the user."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    said = str(error).strip().split("\n")[0]
    page = f"https://huggingface.co/{name}"
    if isinstance(error, GatedRepoError):  # before RepositoryNotFoundError, whose subclass it is
        raise CheckpointError(
            f"'{name}' is gated: ask for access on {page}, and log in with `hf auth login`"
        ) from error
    if isinstance(error, RepositoryNotFoundError):
        names: Any = known_checkpoints(catalogue)
        raise CheckpointError(
            f"the hub has no '{name}', or it is private (log in with `hf auth login`); {known(name, names)}"
        ) from error
    if isinstance(error, HfHubHTTPError) and getattr(error.response, "status_code", 500) == 401:
        raise CheckpointError(f"the hub refuses '{name}': {said}; log in with `hf auth login`") from error
    raise UnavailableError(
        f"cannot fetch '{name}': {said or type(error).__name__}; the same command goes on once the network is back"
    ) from error
