"""Reading a config.json: keys that must be there, and keys that may only say what is implemented."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esdllm import CheckpointError

__all__ = ["need", "refuse"]


def need(config: Mapping[str, Any], key: str, kind: type) -> Any:
    """Return a value that a model cannot be built without.

    Raises:
        CheckpointError: absent, or of another type.
    """
    value = config.get(key)
    if kind is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CheckpointError(f"config.json: {key} = {value!r}, where a {kind.__name__} is needed")
    return value


def refuse(config: Mapping[str, Any], implemented: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse a config whose value of a key is none of the implemented ones; absent keys are fine.

    Raises:
        CheckpointError: names the key, its value and what is implemented.
    """
    for key, values in implemented.items():
        if key in config and config[key] not in values:
            raise CheckpointError(
                f"config.json: {key} = {config[key]!r} is not implemented; only {' or '.join(map(repr, values))} is"
            )
