"""Reading a config.json that has the keys which transformers gives a decoder, as most families' have."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import attrs

from esdllm import BlockCausal, CheckpointError, ExpertLayers, ModelSpec
from esdllm.checkpoints.reading import (
    MOST_LAYERS,
    factor,
    head_dim,
    refuse,
    refuse_unread,
    size,
    stop_ids,
    token,
)
from esdllm.checkpoints.weights import Stated
from esdllm.errors import brief
from esdllm_models.blueprint import Blueprint, Names, Sizes
from esdllm_models.decoder import Geometry
from esdllm_models.elementwise import ACTIVATIONS
from esdllm_models.feedforward import Routing
from esdllm_models.rope import Rope, rope_of

__all__ = ["LLAMA_NAMES", "ROPE_KEYS", "Mixture", "block_size", "check", "flag", "numbers", "stock"]

ROPE_KEYS = frozenset({"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"})

LLAMA_NAMES = Names(
    outer={"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"},
    layer="model.layers.{}.",
    inner={
        "attn_norm": "input_layernorm",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
        "out": "self_attn.o_proj",
        "mlp_norm": "post_attention_layernorm",
        "gate": "mlp.gate_proj",
        "up": "mlp.up_proj",
        "down": "mlp.down_proj",
        "router": "mlp.gate",
    },
    experts={name: f"mlp.experts.{{}}.{name}_proj" for name in ("gate", "up", "down")},
)
"""What Llama's and Qwen's checkpoints call the modules, and so most families'."""


@attrs.frozen
class Mixture:
    """What a config.json says of experts."""

    spec: ExpertLayers
    routing: Routing
    experts: Stated
    expert: Stated
    shared: Stated | None = None

    @classmethod
    def of(
        cls, layers: Iterable[int], routing: Routing, experts: Stated, expert: Stated, shared: Stated | None = None
    ) -> Mixture:
        """Return what is said of `experts` with features `expert` each, in some layers; `shared` is of those for all positions.

        Raises:
            CheckpointError: no layer has any, or a position cannot choose as it is told to.
        """
        numbers, count = tuple(layers), experts.value
        if not numbers:
            raise CheckpointError("config.json: no layer has experts; a model without any is of another family")
        if routing.chosen > count or count % routing.groups or routing.open_groups > routing.groups:
            raise CheckpointError(
                f"config.json: a position cannot choose {routing.chosen} of {experts} in {routing.open_groups} of "
                f"{routing.groups} groups"
            )
        if routing.chosen > count // routing.groups * routing.open_groups:
            raise CheckpointError(
                f"config.json: {routing.open_groups} of {routing.groups} groups of {experts} have fewer than the "
                f"{routing.chosen} that a position chooses"
            )
        width = 0 if shared is None else shared.size
        return cls(ExpertLayers(numbers, count, routing.chosen, expert.size, width), routing, experts, expert, shared)


def check(
    config: Mapping[str, Any],
    implemented: Mapping[str, tuple[Any, ...]],
    read: Collection[str] = (),
    windows: bool = False,
) -> None:
    """Refuse a config that asks for what is not implemented, or has keys, none of `read`, that change what is computed.

    Beside `implemented` and `read`, the keys that `stock` reads are known. `windows` says that the family's own code takes no
    notice of sliding windows, whatever the config says of them.

    Raises:
        CheckpointError: names the keys, their values and what is implemented.
    """
    known = {"hidden_act": tuple(ACTIVATIONS), "tie_word_embeddings": (False, True), **implemented}
    unread = {"use_sliding_window", "layer_types"} if windows else set[str]()
    if not windows:
        known["use_sliding_window"] = (False, None)
    sliding = {"sliding_window", "max_window_layers", *unread}  # of no account without use_sliding_window
    refuse_unread(config, {*known, *read, *sliding, *ROPE_KEYS})
    refuse(config, known)


def flag(config: Mapping[str, Any], key: str) -> bool:
    """Return a switch, which is off where it is absent or null.

    Raises:
        CheckpointError: it is something else than true or false.
    """
    refuse(config, {key: (None, False, True)})
    return bool(config.get(key))


def numbers(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Return a list of whole numbers; none where it is absent or null.

    Raises:
        CheckpointError: it is no such list.
    """
    told = [] if config.get(key) is None else config[key]
    if not isinstance(told, (list, tuple)) or not all(type(one) is int and one >= 0 for one in told):
        raise CheckpointError(f"config.json: {key} = {brief(told)}, where a list of whole numbers is needed")
    return tuple(told)


def block_size(config: Mapping[str, Any], key: str, default: int) -> int:
    """Return the positions of a block of attention: `block_size`, which users tell too, else the family's key, else a default.

    Raises:
        CheckpointError: it is no whole number above 0.
    """
    told = next((name for name in ("block_size", key) if config.get(name) is not None), None)
    return default if told is None else size(config, told)


def stock(
    config: Mapping[str, Any],
    family: str,
    *,
    names: Names = LLAMA_NAMES,
    own_head_dim: bool | None = False,
    inside_key: str = "intermediate_size",
    rope: Callable[[Mapping[str, Any], int], Rope] = rope_of,
    mixture: Mixture | None = None,
    mask_id: int | None = None,
    logit_shift: int = 0,
    attention: BlockCausal | None = None,
    **switches: bool,
) -> Blueprint:
    """Return the blueprint of a decoder with transformers' keys, once it is checked.

    `own_head_dim` says whether the config has a key for the features of a head: True for must, None for may, False for no;
    `inside_key` is that for the features inside a feed-forward, which may be absent where all layers have experts.
    `rope` reads RoPE of a config and D; `mask_id` is the mask token's where nothing tells it; `switches` are Geometry's.

    Raises:
        CheckpointError: a size, factor or token is missing or out of range.
    """
    sizes = _sizes(config, own_head_dim, inside_key, mixture)
    vocab, dim = sizes.vocab.value, sizes.keys.each
    spec = ModelSpec(
        family=family,
        n_layers=sizes.layers.value,
        hidden=sizes.hidden.value,
        n_heads=size(config, "num_attention_heads"),
        n_kv_heads=sizes.keys.value,
        head_dim=dim,
        vocab=vocab,
        context=size(config, "max_position_embeddings"),
        **_tokens(config, vocab, mask_id),
        logit_shift=logit_shift,
        intermediate=sizes.intermediate.value,
        remembers_forbidden=logit_shift > 0,
        attention=attention,
        experts=mixture.spec if mixture else None,
    )
    geometry = Geometry(
        rope=rope(config, dim),
        norm_eps=factor(config, "rms_norm_eps"),
        activation=config.get("hidden_act", "silu"),
        routing=mixture.routing if mixture else None,
        **switches,
    )
    return Blueprint(spec, geometry, attrs.evolve(names, tied=flag(config, "tie_word_embeddings")), sizes)


def _tokens(config: Mapping[str, Any], vocab: int, mask_id: int | None) -> dict[str, Any]:
    masked = {**config, "mask_token_id": mask_id} if config.get("mask_token_id") is None else config
    return {
        "mask_id": token(masked, "mask_token_id", vocab),
        "eos_id": token(config, "eos_token_id", vocab),
        "stop_ids": stop_ids(config, vocab)[1:],
    }


def _sizes(config: Mapping[str, Any], own_head_dim: bool | None, inside_key: str, mixture: Mixture | None) -> Sizes:
    hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
    kv_heads, layers = size(config, "num_key_value_heads"), size(config, "num_hidden_layers", MOST_LAYERS)
    told = own_head_dim or (own_head_dim is None and config.get("head_dim") is not None)
    dim = head_dim(hidden, heads, kv_heads, size(config, "head_dim") if told else None)
    if not told:
        refuse(config, {"head_dim": (None, dim)})
    dense = mixture is None or len(mixture.spec.layers) < layers
    inside = size(config, inside_key) if dense or config.get(inside_key) is not None else 0
    share = "head_dim" if told else "hidden_size / num_attention_heads"
    return Sizes(
        layers=Stated("num_hidden_layers", layers),
        hidden=Stated("hidden_size", hidden),
        queries=Stated("num_attention_heads", heads, dim, share) if told else Stated("hidden_size", hidden),
        keys=Stated("num_key_value_heads", kv_heads, dim, share),
        vocab=Stated("vocab_size", size(config, "vocab_size")),
        intermediate=Stated(inside_key, inside),
        head_dim=Stated("head_dim", dim) if told else None,
        experts=mixture.experts if mixture else None,
        expert=mixture.expert if mixture else None,
        shared=mixture.shared if mixture else None,
    )
