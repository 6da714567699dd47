"""A named configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

__all__ = ["Preset"]


@attrs.frozen
class Preset:
    """A named configuration: one line on what it is, and the settings it makes."""

    summary: str
    """one line, as `esdllm plugins` prints it"""
    settings: Mapping[str, Any]
    """what `DecodeConfig.from_dict` takes; at least a component for every section"""
