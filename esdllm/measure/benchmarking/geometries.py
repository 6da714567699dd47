"""Sizes of models to measure speed and memory on: weights are random, so nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from esdllm.checkpoints.loading import geometries
from esdllm.errors import InputError, known
from esdllm.plugins.catalogue import Catalogue

__all__ = ["SCALED", "geometry", "geometry_names", "resized"]


def _llada(hidden: int, layers: int, heads: int, intermediate: int, vocab: int) -> Mapping[str, Any]:
    return MappingProxyType(
        {
            "model_type": "llada",
            "torch_dtype": "bfloat16",
            "d_model": hidden,
            "n_layers": layers,
            "n_heads": heads,
            "n_kv_heads": heads,
            "mlp_hidden_size": intermediate,
            "vocab_size": vocab,
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5,
            "max_sequence_length": 4096,
            "mask_token_id": vocab - 1,
            "eos_token_id": vocab - 2,
        }
    )


SCALED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "tiny": _llada(hidden=256, layers=4, heads=4, intermediate=768, vocab=4096),
        "small": _llada(hidden=1024, layers=16, heads=8, intermediate=3072, vocab=32768),
        "medium": _llada(hidden=2048, layers=24, heads=16, intermediate=6144, vocab=126464),
    }
)
"""A config.json for each scaled geometry, of LLaDA's proportions: a feed-forward of three times the hidden size."""

_KEYS: Mapping[str, tuple[str, ...]] = {
    "hidden": ("d_model", "hidden_size"),
    "layers": ("n_layers", "num_hidden_layers"),
    "heads": ("n_heads", "num_attention_heads"),
    "kv_heads": ("n_kv_heads", "num_key_value_heads"),
    "intermediate": ("mlp_hidden_size", "intermediate_size", "dense_intermediate_size"),
    "experts": ("num_experts",),
    "expert": ("moe_intermediate_size", "expert_intermediate_size"),
    "vocab": ("vocab_size", "embedding_size"),
    "context": ("max_sequence_length", "max_position_embeddings"),
}
_DEFAULT = "small"


def geometry_names(catalogue: Catalogue) -> list[str]:
    """Return the names that `geometry` takes."""
    return [*SCALED, *geometries(catalogue)]


def geometry(text: str, catalogue: Catalogue) -> dict[str, Any]:
    """Return the config.json of a geometry: a name, sizes over it (`small,layers=8`), or sizes alone, which go over `small`.

    Sizes are hidden, layers, heads, kv_heads, intermediate, vocab and context, and where there are experts, how many (experts)
    and the features inside one (expert). Where `hidden` is given, heads and feed-forward keep their proportions to it, unless
    they are given too.

    Raises:
        InputError: an unknown name or size, or a value that does not fit.
    """
    first, *others = [part.strip() for part in text.split(",") if part.strip()] or [_DEFAULT]
    if "=" in first:
        first, others = _DEFAULT, [first, *others]
    offered = {**SCALED, **geometries(catalogue)}
    if first not in offered:
        raise InputError(f"no geometry '{first}'; {known(first, offered)}")
    return resized(offered[first], dict(map(_size, others)))


def _size(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if name not in _KEYS:
        raise InputError(f"a geometry has no size '{name}'; {known(name, _KEYS)}")
    if not value.isdecimal() or int(value) < 1:
        raise InputError(f"the geometry's {name} is '{value}'; write a whole number above 0, as {name}=1024")
    return name, int(value)


def resized(geometry: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """Return a geometry's config.json with sizes over it, which are named as for `geometry`.

    Raises:
        InputError: the hidden size does not divide by the heads, or the geometry has no such size.
    """
    config, sizes = dict(geometry), dict(sizes)
    old = {name: config[key] for name, keys in _KEYS.items() for key in reversed(keys) if key in config}
    if missing := next((name for name in sizes if name not in old), None):
        raise InputError(f"this geometry has no {missing}; it has {', '.join(old)}")
    if (hidden := sizes.get("hidden")) is not None:
        dim = old["hidden"] // old["heads"]
        heads = sizes.setdefault("heads", max(1, hidden // dim))
        for name in old.keys() & {"intermediate", "expert"}:
            sizes.setdefault(name, -(-old[name] * hidden // old["hidden"]))
        if hidden % heads:
            raise InputError(f"hidden={hidden} does not divide by heads={heads}; give heads that divide it")
    if "heads" in sizes:
        sizes.setdefault("kv_heads", max(1, sizes["heads"] * old["kv_heads"] // old["heads"]))
    for name, value in sizes.items():
        config.update({key: value for key in _KEYS[name] if key in config})
    if "layers" in sizes and isinstance(told := config.get("moe_layer_freq"), list):  # which of them have experts
        config["moe_layer_freq"] = [told[min(layer, len(told) - 1)] for layer in range(sizes["layers"])]
    if "vocab" in sizes:  # the special tokens are the last
        config.update(mask_token_id=sizes["vocab"] - 1, eos_token_id=sizes["vocab"] - 2)
    return config
