"""Configuration: settings and options, the layers that they come in, a project's file, and their schema."""

from esdllm.config.settings import (
    DEFAULT_MODEL,
    DEFAULT_PRESET,
    SECTIONS,
    ComponentConfig,
    DecodeConfig,
    base_preset,
    check_setting,
    merge,
    parse_set,
    read_toml,
)

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_PRESET",
    "SECTIONS",
    "ComponentConfig",
    "DecodeConfig",
    "base_preset",
    "check_setting",
    "merge",
    "parse_set",
    "read_toml",
]
