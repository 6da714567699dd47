"""Loading a model: from a name to a folder, from its config.json to the family that implements it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

from esdllm.checkpoints.dtypes import choose_dtype
from esdllm.checkpoints.families import family_of, geometries, shipped_checkpoints
from esdllm.checkpoints.finding import locate
from esdllm.checkpoints.loaded import Model, Weights
from esdllm.checkpoints.lora import base_of
from esdllm.checkpoints.placing import DeviceMap, Placement, resolve_device, resolve_dtype
from esdllm.checkpoints.published import told_of
from esdllm.checkpoints.reading import ends_of_text, json_object, mask_token_id, refuse_quantized
from esdllm.checkpoints.stored import has_weights
from esdllm.checkpoints.told import Told
from esdllm.checkpoints.unwrapping import unwrapped
from esdllm.errors import CheckpointError, PluginError, TokenizerError, known
from esdllm.interfaces import ModelFamily, TextCodec
from esdllm.keywords import hinting
from esdllm.plugins.catalogue import Catalogue
from esdllm.plugins.offers import Offers
from esdllm.views import ComputeChoice, LoadPlan, ModelSpec

__all__ = [
    "Model",
    "Weights",
    "describe_model",
    "describe_weights",
    "from_module",
    "geometries",
    "load_model",
    "random_model",
    "resolve_device",
    "resolve_dtype",
    "shipped_checkpoints",
]

_FILES = ("*.json", "*.safetensors", "*.jinja", "merges.txt")
_TOKENIZER = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
_AUTO = "auto"
"""the kernel that the family chooses"""
_MASK, _EOS = "mask_token_id", "eos_token_id"


@hinting
def load_model(
    name_or_path: str | Path,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    catalogue: Catalogue | None = None,
    *,
    quantize: str | None = None,
    compute: str | None = None,
    device_map: DeviceMap | None = None,
    family: str | None = None,
) -> Model:
    """Return a model from a local folder, a hub id, or the name of a checkpoint that ships with a plugin.

    `device` is the GPU if there is one and else the CPU; `dtype` is the checkpoint's own unless given: config.json's, or if
    that has none, that of most of the weights. A folder may hold a LoRA adapter in PEFT's format instead: the model that it
    names is loaded, and the adapter merged into it. `quantize` holds
    the weights of linear layers in fewer bits: int8, int8-weight-only or int4-weight-only; `compute` names the kernel that
    multiplies by weights in full (plain, packed, pieces or fp16; see docs/weights.md), and "auto", as None, leaves that to the
    family: ours take the fastest here, and `Model.compute` says which. `device_map` spreads the layers
    over devices instead of `device`: a list of them, "auto" for all GPUs, or a mapping such as {"layers.0-15": "cuda:0",
    "layers.16-31": "cuda:1"}, in which embedding and head may be named too and else go with the first and the last layer.
    `family` says of which family the model is where its config.json does not tell, and after the name what else that lacks:
    "open-dcoder", or "sdar,block_size=8" (`mask_token_id`, `eos_token_id`, `block_size`, and the family's own options).

    Weights are read straight into place, layer by layer; code in a checkpoint is never run. A hub id is looked up through
    huggingface_hub, which respects HF_HUB_OFFLINE.

    Raises:
        CheckpointError: no such checkpoint, or one that cannot be loaded; names the key, weight or file, or the families that
            could read it where the user is to say which. A tokenizer that is
            missing or broken is no error until text comes (`codec_error`); one with another mask token than the model's is.
        UnavailableError: the device, dtype or quantisation is not available.
        ConfigError: `device_map` is no map of this model's layers; `family` cannot be read.
    """
    catalogue = catalogue or Catalogue.load()
    placement = Placement.of(device, device_map)
    told = told_of(family, str(name_or_path), catalogue)  # wrong words, before anything is fetched
    folder, lora = locate(str(name_or_path), shipped_checkpoints(catalogue), _FILES)
    if lora:
        told = told_of(family, base_of(lora), catalogue)
    config = told.applied(_read_config(folder))
    chosen = family_of(folder / "config.json", config, catalogue, told)
    _refuse_quantized(chosen, config)
    plan, _ = _plan(chosen, config, placement, choose_dtype(dtype, config, folder), quantize, compute, lora=lora)
    codec, missing = _codec(chosen, lora or folder, folder, chosen.spec(config))  # before the weights, which take long
    return Model(chosen.load(folder, config, plan), codec, missing, quantize, plan.compute)


@hinting
def random_model(
    geometry: str | Mapping[str, Any],
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    catalogue: Catalogue | None = None,
    *,
    quantize: str | None = None,
    compute: str | None = None,
    device_map: DeviceMap | None = None,
    family: str | None = None,
    seed: int = 0,
) -> Model:
    """Return a model with random weights, to measure speed and memory with; it has no tokenizer.

    `geometry` is the name of a well-known checkpoint's (llada-8b, dream-7b), or a config.json's content. The rest is as for
    `load_model`. Made layer by layer; the same seed gives the same weights.

    Raises:
        CheckpointError: no such geometry, or one that is not implemented.
        UnavailableError: the device, dtype or quantisation is not available.
    """
    catalogue, told = catalogue or Catalogue.load(), Told.of(family)
    placement = Placement.of(device, device_map)
    if isinstance(geometry, str):
        offered = geometries(catalogue)
        if geometry not in offered:
            raise CheckpointError(f"no geometry '{geometry}'; {known(geometry, offered)}")
        geometry = offered[geometry]
    config = told.applied(geometry)
    chosen = family_of("the geometry", config, catalogue, told)
    plan, _ = _plan(chosen, config, placement, choose_dtype(dtype, config), quantize, compute, seed)
    return Model(chosen.load(Path(), config, plan), quantize=quantize, compute=plan.compute)


@hinting
def from_module(
    module: Any, tokenizer: Any = None, catalogue: Catalogue | None = None, *, family: str | None = None
) -> Model:
    """Return a model over the weights of a module that is already loaded, such as a fine-tuned, merged or quantised one.

    `module` is a torch module with a `config`, which decides the family unless `family` tells it, as for `load_model`;
    wrappers are taken off. Nothing is copied: what changes the module's weights in place changes the model. `tokenizer` is one
    of transformers, or a TextCodec.

    Raises:
        CheckpointError: the family is not implemented, or the module is not built as its checkpoints are.
        UnavailableError: a weight cannot be taken over as it is, or the module does more than its weights say.
    """
    catalogue, told = catalogue or Catalogue.load(), Told.of(family)
    module = unwrapped(module)
    found = getattr(module, "config", None)
    if found is None:
        raise CheckpointError(f"the {type(module).__name__} has no config that says what model it is")
    values = found if isinstance(found, Mapping) else found.to_dict() if hasattr(found, "to_dict") else vars(found)
    config = {**values, "model_type": getattr(found, "model_type", values.get("model_type"))}
    config["architectures"] = config.get("architectures") or [type(module).__name__]
    if config.get(_MASK) is None:
        config[_MASK] = getattr(tokenizer, _MASK, None)
    config[_EOS] = ends_of_text(config.get(_EOS), getattr(getattr(module, "generation_config", None), _EOS, None))
    config = told.applied(config)
    chosen = family_of("the module's config", config, catalogue, told)
    adapter = chosen.from_module(module, config)
    if tokenizer is None or hasattr(tokenizer, "stop_ids"):
        return Model(adapter, tokenizer)
    return Model(adapter, chosen.codec(tokenizer, adapter.spec))


@hinting
def describe_model(
    name_or_path: str | Path, catalogue: Catalogue | None = None, *, family: str | None = None
) -> ModelSpec:
    """Return a checkpoint's geometry; no weights are read or downloaded, and tokenizer files only for a mask token's id."""
    chosen, config, _ = _described(name_or_path, catalogue or Catalogue.load(), family)
    return chosen.spec(config)


@hinting
def describe_weights(
    name_or_path: str | Path | Mapping[str, Any],
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    catalogue: Catalogue | None = None,
    device: str | torch.device = "cpu",
    *,
    compute: str | None = None,
    family: str | None = None,
    measure: bool = True,
) -> Weights:
    """Return what weights would be once loaded, from what `describe_model` reads or from a config.json's content.

    Where no kernel is named, one is chosen as in loading; what that goes by is not measured anew unless `measure` is true.
    """
    chosen, config, weights = _described(name_or_path, catalogue or Catalogue.load(), family)
    _refuse_quantized(chosen, config)
    placement, dtype = Placement.of(device), choose_dtype(dtype, config, weights)
    plan, choice = _plan(chosen, config, placement, dtype, quantize, compute, measure=measure)
    offers = Offers.of(chosen)
    problems, held = tuple(offers.problems(config, plan)), chosen.weight_bytes(config, plan)
    return Weights(chosen.spec(config), offers.hidden_dtype(plan), held, problems, plan.compute, choice, plan.dtype)


def _described(
    name_or_path: str | Path | Mapping[str, Any], catalogue: Catalogue, family: str | None
) -> tuple[ModelFamily, Mapping[str, Any], Path | str | None]:
    """Return the family, the config, and where the weights are: a folder, or the hub, by their id; None if nowhere."""
    if isinstance(name_or_path, Mapping):
        told = Told.of(family)
        config = told.applied(name_or_path)
        return family_of("the geometry", config, catalogue, told), config, None
    name, shipped = str(name_or_path), shipped_checkpoints(catalogue)
    folder, lora = locate(name, shipped, ("config.json",))
    base = base_of(lora) if lora else name
    told = told_of(family, base, catalogue)
    config = told.applied(_read_config(folder))
    if config.get(_MASK) is None:
        config = told.applied(_read_config(locate(name, shipped, _TOKENIZER)[0]))
    chosen = family_of(folder / "config.json", config, catalogue, told)
    elsewhere = None if base in shipped or Path(base).expanduser().is_dir() else base
    return chosen, config, folder if has_weights(folder) else elsewhere


def _plan(
    family: ModelFamily,
    config: Mapping[str, Any],
    placement: Placement,
    dtype: torch.dtype,
    quantize: str | None,
    compute: str | None,
    seed: int | None = None,
    lora: Path | None = None,
    measure: bool = True,
) -> tuple[LoadPlan, ComputeChoice | None]:
    """Return the plan for a model, and what its family chose in it, if it had a choice; refuse what it does not offer."""
    spec, named = family.spec(config), None if compute == _AUTO else compute
    plan = attrs.evolve(placement.plan(spec, dtype, quantize), compute=named, seed=seed, lora=lora)
    offers = Offers.of(family)
    plan.only(
        spec.family,
        quantize=offers.quantizations,
        compute=offers.computes,
        spread=offers.spreads,
        random=offers.draws,
        merge=offers.merges,
    )
    if offers.choose_compute is None or named is not None or quantize is not None:
        return plan, None
    choice = offers.choose_compute(config, plan, measure)
    if choice.compute is not None and choice.compute not in offers.computes:
        raise PluginError(
            f"{spec.family} chooses the compute '{choice.compute}'; known: {', '.join(offers.computes) or 'none'}"
        )
    return attrs.evolve(plan, compute=choice.compute), choice


def _codec(family: ModelFamily, tuned: Path, folder: Path, spec: ModelSpec) -> tuple[TextCodec | None, str]:
    """Return the codec of a fine-tune's folder if that has a tokenizer, else of its model's; or why there is none."""
    brings = any((tuned / name).is_file() for name in ("tokenizer.json", "vocab.json"))
    try:
        return family.codec(tuned if brings else folder, spec), ""
    except TokenizerError as error:
        return None, str(error)


def _refuse_quantized(family: ModelFamily, config: Mapping[str, Any]) -> None:
    if not Offers.of(family).unpacks:
        refuse_quantized(config)


def _read_config(folder: Path) -> Mapping[str, Any]:
    """Return a folder's config.json, with generation_config.json's ends of text and, if need be, the tokenizer's mask."""
    path = folder / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is no checkpoint: it has no config.json")
    config, generation = json_object(path), folder / "generation_config.json"
    told = json_object(generation) if generation.is_file() else {}
    mask = mask_token_id(folder) if config.get(_MASK) is None else config[_MASK]
    return {**config, _MASK: mask, _EOS: ends_of_text(config.get(_EOS), told.get(_EOS))}
