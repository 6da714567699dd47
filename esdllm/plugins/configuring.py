"""A configuration from whatever is installed, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from esdllm.config import DEFAULT_PRESET, DecodeConfig
from esdllm.config.project import Project
from esdllm.keywords import hinting
from esdllm.plugins.catalogue import Catalogue

__all__ = ["configure"]


@hinting
def configure(
    preset: str | None = None,
    file: Path | str | None = None,
    settings: Mapping[str, Any] | None = None,
    sets: Iterable[str] = (),
    project: Project | None = None,
) -> DecodeConfig:
    """Return a configuration from the installed plugins' presets, later arguments over earlier; see `Catalogue.configure`.

    The preset is `preset`, else what the file, settings or sets name, else "es-dllm" unless they give every section. Nothing
    is read but `file`: neither the environment nor esdllm.toml, unless `project` brings it (`find_project`), which goes
    under the file.

    Raises:
        ConfigError: an unknown preset, setting or section, or a value out of range.
    """
    return Catalogue.load().configure(preset, file, settings, sets, default=DEFAULT_PRESET, project=project)
