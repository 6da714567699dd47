"""Names of weights as tools leave them: wrapped, beside buffers, beside adapters, quantised."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

from esdllm.checkpoints.sizes import Stated, other_depth
from esdllm.checkpoints.stored import Stored
from esdllm.errors import CheckpointError

__all__ = ["compare", "matched", "unwrapped"]

_WRAPPERS = {
    "_orig_mod",
    "module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
    "base_layer",
}
"""of torch.compile, DataParallel and DeepSpeed, FSDP, activation checkpointing, Lightning, PEFT"""
_PEFT, _MODEL = "base_model.model.", "model."
_BUFFERS = re.compile(r"(.*\.)?(rotary_emb|rotary)\.(\w*inv_freq|cos_cached|sin_cached)")
"""of RoPE, which is computed from config.json"""
_ADAPTER = re.compile(r"\.(lora_\w+|modules_to_save|original_module|token_adapter)(\.|$)")
_QUANTISED = re.compile(
    r"\.(qweight|qzeros|scales|zeros|g_idx|biases|weight_(scale|scale_inv|packed|shape|zero_point|format)|absmax|SCB"
    r"|(nested_)?quant_map|quant_state\..*|(weight|input)_quantizer\..*|activation_scale|input_scale)$"
)


def matched(
    source: str,
    found: Mapping[str, Stored],
    wanted: Collection[str],
    ignored: Collection[str] = (),
    layers: Stated | None = None,
) -> dict[str, str]:
    """Return what each wanted weight is called among those found; `source` is what holds them.

    The names that training wrappers put around a model's own are taken off, and a `model.` may be there or not. Buffers of
    RoPE may be there, and so may `ignored`. `layers` is how many config.json says there are.

    Raises:
        CheckpointError: names what is missing, unexpected or there twice; or says that the weights are quantised, or that an
            adapter was not merged into them.
    """
    known = {*wanted, *ignored}
    names: dict[str, str] = {}
    for name in found:
        bare = unwrapped(name, known)
        if bare in names:
            raise CheckpointError(f"the weights in {source} hold '{bare}' twice, as '{names[bare]}' and as '{name}'")
        if bare in known or not _BUFFERS.fullmatch(bare):
            names[bare] = name
    if unexpected := sorted(set(names) - known):
        _explain(source, unexpected)
    depth = other_depth({bare: found[name] for bare, name in names.items()}, wanted, layers) if layers else ""
    compare(source, names, wanted, ignored, depth)
    return {name: names[name] for name in wanted}


def compare(
    source: str, found: Iterable[str], wanted: Iterable[str], ignored: Collection[str] = (), why: str = ""
) -> None:
    """Refuse weights whose names are not those wanted; `ignored` may be there or not. `source` is what holds them.

    `why` is what is known of the reason.

    Raises:
        CheckpointError: names what is missing and what is unexpected.
    """
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted) - set(ignored))
    if missing or unexpected:
        parts = [f"the weights in {source} are not the model's that its config describes", *([why] if why else ())]
        parts += [
            f"{what}: {_some(names)}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names
        ]
        raise CheckpointError("; ".join(parts))


def unwrapped(name: str, known: Collection[str]) -> str:
    """Return the known name that one is a wrapped form of; without one, what is left of it when wrappers are off."""
    if name in known:
        return name
    bare = ".".join(part for part in name.split(".") if part not in _WRAPPERS).removeprefix(_PEFT)
    return next((one for one in (bare, _MODEL + bare, bare.removeprefix(_MODEL)) if one in known), bare)


def _explain(source: str, unexpected: Iterable[str]) -> None:
    """Raise where what is unexpected tells what was done to the weights."""
    for name in unexpected:
        if _ADAPTER.search(name):
            raise CheckpointError(
                f"the weights in {source} hold an adapter that was not merged, such as '{name}'; merge it with PEFT's "
                "merge_and_unload() and save the model, or save the adapter alone and load its folder"
            )
        if _QUANTISED.search(name):
            raise CheckpointError(
                f"the weights in {source} are quantised, by names such as '{name}', and such are not read; load the checkpoint "
                "that they were made from, and pass quantize to hold it in fewer bits"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
