"""Reading a checkpoint's JSON files: keys that must be there, and keys that may only say what is implemented."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from esdllm.errors import CheckpointError, brief
from esdllm.parsing import parse_json

__all__ = [
    "MOST_LAYERS",
    "class_names",
    "ends_of_text",
    "factor",
    "head_dim",
    "json_object",
    "mask_token_id",
    "need",
    "neutral",
    "refuse",
    "refuse_quantized",
    "refuse_unread",
    "rope_theta",
    "size",
    "stop_ids",
    "token",
]

MOST_LAYERS = 10_000
"""More than any model has; the names of as many layers' weights are listed at once."""

_LARGEST = 2**24  # of any other size

T = TypeVar("T")


def json_object(path: Path) -> dict[str, Any]:
    """Return the content of a file that holds one JSON object.

    Raises:
        CheckpointError: it cannot be read, is not JSON, or holds something else.
    """
    try:
        found = parse_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, where an object is needed")
    return found


def class_names(config: Mapping[str, Any]) -> set[str]:
    """Return the names of the classes that a config.json says make the model: its `architectures`, and those of `auto_map`.

    None of them is ever imported; they tell families of one `model_type` apart. What is no name is passed over.
    """
    listed, mapped = config.get("architectures"), config.get("auto_map")
    found = [*(listed if isinstance(listed, (list, tuple)) else [listed])]
    for one in mapped.values() if isinstance(mapped, Mapping) else ():
        found += one if isinstance(one, (list, tuple)) else [one]  # of tokenizers, slow and fast
    return {name.rpartition(".")[2] for name in found if isinstance(name, str)}


def need(config: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """Return a value that a model cannot be built without; where `kind` is float, a whole number is one too.

    Raises:
        CheckpointError: absent, or of another type.
    """
    value = config.get(key)
    if kind is float and type(value) is int:
        with suppress(OverflowError):  # one beyond all floats stays what it is, and is refused
            value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise CheckpointError(
            f"config.json: {key} = {brief(value)}, where {'an' if kind is int else 'a'} {kind.__name__} is needed"
        )
    return value


def size(config: Mapping[str, Any], key: str, largest: int = _LARGEST) -> int:
    """Return a count of something that a model has at least one of: layers, heads, features, words, positions.

    Raises:
        CheckpointError: absent, of another type, below 1 or above `largest`.
    """
    value = need(config, key, int)
    if not 1 <= value <= largest:
        raise CheckpointError(
            f"config.json: {key} = {brief(value)}, where a whole number from 1 to {largest} is needed"
        )
    return value


def factor(config: Mapping[str, Any], key: str) -> float:
    """Return a number above 0 that a model computes with, such as the epsilon of a norm.

    Raises:
        CheckpointError: absent, of another type, 0, negative, infinite or NaN.
    """
    value = need(config, key, float)
    if not 0.0 < value < math.inf:
        raise CheckpointError(f"config.json: {key} = {brief(config[key])}, where a finite number above 0 is needed")
    return value


def token(config: Mapping[str, Any], key: str, vocab: int) -> int:
    """Return the id of a special token; of several ends of text the first.

    Raises:
        CheckpointError: absent, or outside the vocabulary.
    """
    if config.get(key) is None:
        raise CheckpointError(f"config.json: {key} = None, where an int is needed; write the token's id there")
    return _inside({**config, key: _listed(config, key)[0]}, key, vocab)


def stop_ids(config: Mapping[str, Any], vocab: int) -> tuple[int, ...]:
    """Return the tokens that end an answer by `eos_token_id`, one or a list: those of config.json and generation_config.json.

    The first is the end of text, which pads too, as `token` has it.

    Raises:
        CheckpointError: one of them is no number, or outside the vocabulary.
    """
    key = "eos_token_id"
    listed = [] if config.get(key) is None else _listed(config, key)
    return tuple(dict.fromkeys(_inside({key: one}, key, vocab) for one in listed))


def ends_of_text(*told: Any) -> Any:
    """Return what ends a text by several configs, each with an id, a list or None: one id or a list, None if none says."""
    listed = [each for one in told if one is not None for each in (one if isinstance(one, (list, tuple)) else [one])]
    return listed[0] if len(listed) == 1 and not isinstance(listed[0], list) else listed or None


def _listed(config: Mapping[str, Any], key: str) -> Sequence[Any]:
    """Return the ids under a key, which only for ends of text may be a list."""
    value = config[key]
    return value if key == "eos_token_id" and isinstance(value, (list, tuple)) and value else [value]


def _inside(config: Mapping[str, Any], key: str, vocab: int) -> int:
    value = need(config, key, int)
    if not 0 <= value < vocab:
        raise CheckpointError(f"config.json: {key} = {brief(value)} is outside the vocabulary of {vocab}")
    return value


def mask_token_id(folder: Path) -> int | None:
    """Return the mask token's id by a tokenizer's files; None if they name no mask token.

    tokenizer_config.json names the token, as `mask_token`, or special_tokens_map.json; `added_tokens_decoder` of the former or
    tokenizer.json's `added_tokens` has the id. `load_model` asks this where config.json has no `mask_token_id`, and hands the
    answer to families under that key.

    Raises:
        CheckpointError: a file cannot be read.
    """
    path, whole = folder / "tokenizer_config.json", folder / "tokenizer.json"
    told, named = json_object(path) if path.is_file() else {}, folder / "special_tokens_map.json"
    if "added_tokens_decoder" not in told and named.is_file():  # as in transformers, it counts only then
        told = {**told, **json_object(named)}
    word = told.get("mask_token")
    word = word.get("content") if isinstance(word, Mapping) else word
    if word is None:
        return None
    try:
        ids = (number for number, content in _added(told, whole) if content == word)
        return next(ids, None)
    except CheckpointError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"the added tokens of the tokenizer in {folder} cannot be read: {error!r}") from error


def _added(told: Mapping[str, Any], whole: Path) -> Iterator[tuple[int, str]]:
    """Yield id and content of the added tokens, by tokenizer_config.json first; tokenizer.json, which is long, comes last."""
    yield from ((int(number), one["content"]) for number, one in told.get("added_tokens_decoder", {}).items())
    if whole.is_file():
        yield from ((int(one["id"]), one["content"]) for one in json_object(whole).get("added_tokens", []))


def rope_theta(config: Mapping[str, Any]) -> float:
    """Return RoPE's base: `rope_theta`, or where transformers 5 keeps it, in `rope_parameters`, which goes before.

    Raises:
        CheckpointError: absent, out of range, or a kind of RoPE that is not implemented.
    """
    refuse(config, {"partial_rotary_factor": (None, 1.0)})
    for key in ("rope_scaling", "rope_parameters"):
        if config.get(key) is not None:
            config = {**config, **_default_rope(key, config[key])}
    return factor(config, "rope_theta")


def _default_rope(key: str, told: Any) -> Mapping[str, Any]:
    """Return what a key says of RoPE, if it says no more than its base."""
    if not isinstance(told, Mapping):
        raise CheckpointError(f"config.json: {key} = {brief(told)}, where an object is needed")
    for name, value in told.items():
        if name in ("rope_type", "type"):
            refuse({f"{key}: {name}": value}, {f"{key}: {name}": ("default",)})
        elif name != "rope_theta" and not neutral(value):
            raise CheckpointError(f"config.json: {key}: {name} = {brief(value)} is not implemented")
    return told


_NUMBERS = re.compile(
    r"expert|moe|router|qk_|q_norm|k_norm|norm_(after|head|topk|position)|post_norm|rope|rotary|yarn|ntk|scal|softcap|soft_cap"
    r"|multiplier|window|alibi|causal|sink|layer_types"
)
"""parts of the keys under which models say how they compute"""


def refuse_unread(config: Mapping[str, Any], read: Collection[str]) -> None:
    """Refuse a config with keys, none of `read`, that by their names change what a model computes; what says no may be there.

    Raises:
        CheckpointError: names the keys and their values.
    """
    unread = [
        f"{brief(key)[1:-1]} = {brief(value)}"
        for key, value in config.items()
        if key not in read and _NUMBERS.search(key) and not neutral(value)
    ]
    if unread:
        raise CheckpointError(
            f"config.json: {', '.join(unread[:4])} {'is' if len(unread) == 1 else 'are'} not implemented"
        )


def neutral(value: Any) -> bool:
    """Return whether a config's value says no: nothing, a factor of 1, or full attention in every layer."""
    if isinstance(value, list):
        return set(map(str, value)) <= {"full_attention"}
    return value is None or value is False or (value is not True and value in (0, 1, "", {}))


_QUANTIZED = ("quantization_config", "quantization", "compression_config")


def refuse_quantized(config: Mapping[str, Any]) -> None:
    """Refuse a config that says that the weights are quantised.

    Raises:
        CheckpointError: names the key and the method.
    """
    for key in _QUANTIZED:
        told = config.get(key)
        if told:
            parts = told if isinstance(told, Mapping) else {}
            how = [
                f"{name} = {brief(parts[name])}"
                for name in ("quant_method", "bits", "group_size", "fmt")
                if name in parts
            ]
            raise CheckpointError(
                f"config.json: {key} ({', '.join(how) or type(told).__name__}) says that the weights are quantised, and such are "
                "not read; load the checkpoint that they were made from, and pass quantize to hold it in fewer bits, or load "
                "this one with the library that made it, and hand the module to from_module"
            )


def head_dim(hidden: int, heads: int, kv_heads: int, told: int | None = None) -> int:
    """Return the features of one head: as `told` where a config has a key for them, else an even share of `hidden`.

    Raises:
        CheckpointError: the features cannot be shared evenly by the heads, or the heads by the key-value heads, or the
            features of a head are odd, which RoPE cannot turn.
    """
    sizes = f"config.json: {hidden} features, {heads} heads and {kv_heads} key-value heads"
    if min(hidden, heads, kv_heads) < 1 or (told is None and hidden % heads) or heads % kv_heads:
        raise CheckpointError(f"{sizes} do not divide evenly")
    found = hidden // heads if told is None else told
    if found < 1 or found % 2:
        raise CheckpointError(f"{sizes} of {found} features; the features of a head must be even")
    return found


def refuse(config: Mapping[str, Any], implemented: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse a config whose value of a key is none of the implemented ones; absent keys are fine.

    Raises:
        CheckpointError: names the key, its value and what is implemented.
    """
    for key, values in implemented.items():
        if key in config and config[key] not in values:
            raise CheckpointError(
                f"config.json: {key} = {brief(config[key])} is not implemented; only {' or '.join(map(repr, values))} is"
            )
