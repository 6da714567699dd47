"""Reading a config.json: keys that must be there, and keys that may only say what is implemented."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esdllm import CheckpointError

__all__ = ["head_dim", "need", "refuse", "rope_theta", "token"]


def need(config: Mapping[str, Any], key: str, kind: type) -> Any:
    """Return a value that a model cannot be built without.

    Raises:
        CheckpointError: absent, or of another type.
    """
    value = config.get(key)
    if kind is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CheckpointError(
            f"config.json: {key} = {value!r}, where {'an' if kind is int else 'a'} {kind.__name__} is needed"
        )
    return value


def token(config: Mapping[str, Any], key: str, vocab: int) -> int:
    """Return the id of a special token.

    Raises:
        CheckpointError: absent, or outside the vocabulary.
    """
    value: int = need(config, key, int)
    if not 0 <= value < vocab:
        raise CheckpointError(f"config.json: {key} = {value} is outside the vocabulary of {vocab}")
    return value


def rope_theta(config: Mapping[str, Any]) -> float:
    """Return RoPE's base: `rope_theta`, or where transformers 5 keeps it, in `rope_parameters`.

    Raises:
        CheckpointError: absent, or a kind of RoPE that is not implemented.
    """
    if "rope_theta" not in config and isinstance(parameters := config.get("rope_parameters"), Mapping):
        refuse({"rope_type": parameters.get("rope_type", "default")}, {"rope_type": ("default",)})
        config = parameters
    found: float = need(config, "rope_theta", float)
    return found


def head_dim(hidden: int, heads: int, kv_heads: int) -> int:
    """Return the features of one head.

    Raises:
        CheckpointError: the features cannot be shared evenly by the heads, or the heads by the key-value heads.
    """
    if min(hidden, heads, kv_heads) < 1 or hidden % heads or heads % kv_heads:
        raise CheckpointError(
            f"config.json: {hidden} features, {heads} heads and {kv_heads} key-value heads do not divide evenly"
        )
    return hidden // heads


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
