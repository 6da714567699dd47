"""Checkpoints as tools leave them: wrapped names and buffers load; what cannot be read is refused by what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CASES, read_config, write_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from esdllm import Catalogue, CheckpointError, describe_model, load_model
from esdllm.checkpoints.loading import describe_weights
from esdllm.checkpoints.reading import refuse_unread, rope_theta
from esdllm.runtime.plain import full_logits

TOKENS = torch.randint(0, 250, (2, 13), generator=torch.Generator().manual_seed(0))
FAMILIES = ("llada-0", "dream-0")
INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
ADAPTED = ["q_proj.lora_A.weight", "q_proj.lora_B.default.weight", "q_proj.lora_magnitude_vector.default.weight"]
ADAPTED += ["ff_out.original_module.weight", "wte.lora_embedding_A.default"]
PACKED = ["qweight", "qzeros", "scales", "g_idx", "biases", "SCB", "weight_scale", "weight_scale_inv", "weight_packed"]
PACKED += ["weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4", "input_scale"]
Rename = Callable[[str], str]


def weights_of(name: str) -> dict[str, Tensor]:
    return load_file(CASES / name / "model.safetensors")


def logits(folder: Path, catalogue: Catalogue) -> Tensor:
    return full_logits(load_model(folder, "cpu", "float32", catalogue).adapter, TOKENS)


def refused(folder: Path, catalogue: Catalogue, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(folder, "cpu", "float32", catalogue)


def after_first(word: str) -> Rename:
    return lambda name: name.replace(".", f".{word}.", 1)


RENAMES: dict[str, Rename] = {
    "peft": lambda name: f"base_model.model.{name}",
    "parallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "bare": lambda name: name.removeprefix("model."),
    "twice": lambda name: f"model.{name}",
    "all": lambda name: f"module._orig_mod.base_model.model.{name}",
    "compiled inside": after_first("_orig_mod"),
    "layers compiled": lambda name: name.replace("layers.1.", "layers.1._orig_mod.").replace(
        "blocks.1.", "blocks.1._orig_mod."
    ),
    "sharded": lambda name: f"_fsdp_wrapped_module.{name}",
    "checkpointed": after_first("_checkpoint_wrapped_module"),
    "lightning": lambda name: f"_forward_module.{name}",
    "unloaded": lambda name: name.replace("q_proj.", "q_proj.base_layer."),
    "some": lambda name: f"module.{name}" if "q_proj" in name else name,
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("rename", RENAMES.values(), ids=RENAMES)
def test_names_load_however_they_are_wrapped(catalogue: Catalogue, tmp_path: Path, name: str, rename: Rename) -> None:
    renamed = {rename(key): weight for key, weight in weights_of(name).items()}
    assert set(renamed) != set(weights_of(name))
    folder = write_checkpoint(tmp_path, read_config(name), renamed, shards=2)
    assert logits(folder, catalogue).equal(logits(CASES / name, catalogue))


@pytest.mark.parametrize(
    "buffer",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.rotary_emb.inv_freq",
        "rotary_emb.original_inv_freq",
        "module.model.layers.2.self_attn.rotary_emb.cos_cached",
    ],
)
def test_buffers_of_rope_may_be_there(catalogue: Catalogue, tmp_path: Path, buffer: str) -> None:
    folder = write_checkpoint(tmp_path, read_config("dream-0"), {**weights_of("dream-0"), buffer: torch.ones(8)})
    assert logits(folder, catalogue).equal(logits(CASES / "dream-0", catalogue))


def test_a_weight_that_is_there_twice_is_named_with_both_its_names(catalogue: Catalogue, tmp_path: Path) -> None:
    weights = weights_of("llada-0")
    name = "model.transformer.ln_f.weight"
    folder = write_checkpoint(tmp_path, read_config("llada-0"), {**weights, f"module.{name}": weights[name].clone()})
    refused(folder, catalogue, f"hold '{name}' twice, as '{name}' and as 'module.{name}'")


@pytest.mark.parametrize(
    "other", ["ema.transformer.wte.weight", "v_head.weight", "model.transformer.wte2.weight", "inv_freq"]
)
def test_other_names_are_unexpected_still(catalogue: Catalogue, tmp_path: Path, other: str) -> None:
    folder = write_checkpoint(tmp_path, read_config("llada-0"), {**weights_of("llada-0"), other: torch.ones(8)})
    refused(folder, catalogue, f"unexpected: {other}$")


@pytest.mark.parametrize(
    "name",
    [
        "q_proj.lora_A.weight",
        "q_proj.lora_B.default.weight",
        "q_proj.lora_magnitude_vector.default.weight",
        "ff_out.original_module.weight",
        "wte.lora_embedding_A.default",
    ],
)
def test_an_adapter_that_was_not_merged_is_named(catalogue: Catalogue, tmp_path: Path, name: str) -> None:
    weights = {f"base_model.model.{key}": weight for key, weight in weights_of("llada-0").items()}
    name = f"base_model.model.model.transformer.blocks.0.{name}"
    folder = write_checkpoint(tmp_path, read_config("llada-0"), {**weights, name: torch.ones(4, 4)})
    refused(
        folder, catalogue, r"an adapter that was not merged, such as '.*'; merge it with PEFT's merge_and_unload\(\)"
    )


QUANTIZED: list[tuple[dict[str, Any], str]] = [
    (
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
        "quantization_config .quant_method = 'gptq', bits = 4",
    ),
    (
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        "quantization_config .quant_method = 'bitsa",
    ),
    (
        {"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}},
        "quantization_config .quant_method = 'fp8', fmt = 'e4m3'",
    ),
    ({"quantization_config": {"load_in_8bit": True}}, "quantization_config .dict. says that the weights are quantised"),
    ({"quantization_config": "awq"}, "quantization_config .str. says"),
    ({"quantization": {"group_size": 64, "bits": 4}}, "quantization .bits = 4, group_size = 64. says"),
    (
        {"compression_config": {"quant_method": "compressed-tensors"}},
        "compression_config .quant_method = 'compressed-tensors'",
    ),
]


@pytest.mark.parametrize(("told", "message"), QUANTIZED, ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_config_that_says_quantised_is_refused_by_that_key(
    catalogue: Catalogue, tmp_path: Path, name: str, told: dict[str, Any], message: str
) -> None:
    folder = write_checkpoint(tmp_path, {**read_config(name), **told}, weights_of(name))
    refused(
        folder,
        catalogue,
        rf"config.json: {message}.*not read; load the checkpoint that they were made from, and pass quant",
    )
    with pytest.raises(CheckpointError, match=message):
        describe_weights(folder, catalogue=catalogue)
    assert describe_model(folder, catalogue) == describe_model(CASES / name, catalogue)


@pytest.mark.parametrize(
    "told", [{"quantization_config": None}, {"quantization_config": {}}, {"quantization": None}], ids=str
)
def test_a_config_that_says_nothing_of_it_under_those_keys_loads(
    catalogue: Catalogue, tmp_path: Path, told: dict[str, Any]
) -> None:
    folder = write_checkpoint(tmp_path, {**read_config("dream-0"), **told}, weights_of("dream-0"))
    assert logits(folder, catalogue).equal(logits(CASES / "dream-0", catalogue))


@pytest.mark.parametrize(
    "suffix",
    [
        "qweight",
        "qzeros",
        "scales",
        "g_idx",
        "biases",
        "weight_scale",
        "weight_scale_inv",
        "weight_packed",
        "weight.absmax",
        "weight.quant_map",
        "SCB",
        "weight.quant_state.bitsandbytes__nf4",
        "input_scale",
    ],
)
def test_names_that_only_quantised_weights_have_say_so(catalogue: Catalogue, tmp_path: Path, suffix: str) -> None:
    more = {f"model.transformer.blocks.1.q_proj.{suffix}": torch.ones(4, dtype=torch.int32)}
    folder = write_checkpoint(tmp_path, read_config("llada-0"), {**weights_of("llada-0"), **more})
    refused(
        folder,
        catalogue,
        rf"are quantised, by names such as '.*{suffix}', and such are not read; load the checkpoint that",
    )


DTYPES = {
    torch.int8: "I8, .*quantised weights are not read",
    torch.uint8: "U8, .*quantised weights are not read",
    torch.int32: "I32, .*quantised weights are not read",
    torch.int64: "I64, .*quantised weights are not read",
    torch.float8_e4m3fn: "F8_E4M3, .*quantised weights are not read",
    torch.float8_e5m2: "F8_E5M2, .*quantised weights are not read",
    torch.bool: "BOOL, .*such are not a model's weights",
    torch.complex64: "C64, .*such are not a model's weights",
}


@pytest.mark.parametrize(("dtype", "message"), DTYPES.items(), ids=str)
@pytest.mark.parametrize("every", [False, True], ids=["one", "every"])
@pytest.mark.parametrize("asked", ["float32", None])
def test_numbers_that_are_no_weights_are_refused_by_their_dtype(
    catalogue: Catalogue, tmp_path: Path, dtype: torch.dtype, message: str, every: bool, asked: str | None
) -> None:
    weights = {
        name: weight.to(dtype) if every or name.endswith("blocks.2.q_proj.weight") else weight
        for name, weight in weights_of("llada-0").items()
    }
    config = {key: value for key, value in read_config("llada-0").items() if key != "torch_dtype"}
    folder = write_checkpoint(tmp_path, config, weights)
    with pytest.raises(CheckpointError, match=rf"(holds|are) {message}"):
        load_model(folder, "cpu", asked, catalogue)


@pytest.mark.slow
def test_the_index_says_which_shard_holds_a_tensor(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, read_config("llada-0"), weights_of("llada-0"), shards=2)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    for file, other in (SHARDS, SHARDS[::-1]):  # what is another shard's stands there too, stale
        stale = {name: torch.zeros_like(weight) for name, weight in load_file(folder / other).items()}
        own = {name: weight for name, weight in load_file(folder / file).items() if index["weight_map"][name] == file}
        save_file({**{name: x for name, x in stale.items() if index["weight_map"][name] != file}, **own}, folder / file)
    assert logits(folder, catalogue).equal(logits(CASES / "llada-0", catalogue))
    name = next(name for name, file in index["weight_map"].items() if file == SHARDS[1])
    save_file({key: x for key, x in load_file(folder / SHARDS[1]).items() if key != name}, folder / SHARDS[1])
    refused(folder, catalogue, f"says that '{name}' is in {SHARDS[1]}, which does not hold it; download both again")


def test_a_tensor_that_the_index_leaves_out_is_missing(catalogue: Catalogue, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, read_config("llada-0"), weights_of("llada-0"), shards=2)
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    del index["weight_map"]["model.transformer.ln_f.weight"]
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    refused(folder, catalogue, "missing: model.transformer.ln_f.weight$")


def test_two_sets_of_weights_are_refused_and_an_index_of_the_one_file_is_read(
    catalogue: Catalogue, tmp_path: Path
) -> None:
    weights = weights_of("llada-0")
    folder = write_checkpoint(tmp_path, read_config("llada-0"), weights, shards=2)
    save_file(weights, folder / "model.safetensors")
    refused(folder, catalogue, f"two sets of weights, model.safetensors and those that {INDEX} names; remove one")
    (folder / INDEX).write_text(
        json.dumps({"weight_map": dict.fromkeys(weights, "model.safetensors")}), encoding="utf-8"
    )
    assert logits(folder, catalogue).equal(logits(CASES / "llada-0", catalogue))


LLADA_MOE = {"model_type": "Dream", "hidden_size": 2048, "num_experts": 64}
LLADA_MOE |= {"num_experts_per_tok": 8, "expert_intermediate_size": 1024, "qk_layernorm": True}

UNREAD: list[tuple[dict[str, Any], str]] = [
    (
        LLADA_MOE,
        "num_experts = 64, num_experts_per_tok = 8, expert_intermediate_size = 1024, qk_layernorm = True are not impl",
    ),
    ({**read_config("llada-0"), "rope_scaling_factor": 4.0}, "rope_scaling_factor = 4.0 is not implemented"),
    ({**read_config("llada-0"), "n_experts": 4}, "n_experts = 4 is not implemented"),
    (
        {**read_config("llada-0"), "rope_scaling": {"type": "ntk", "factor": 4}},
        "rope_scaling: type = 'ntk' is not impl",
    ),
    ({**read_config("llada-0"), "partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not implemented"),
    ({**read_config("llada-0"), "sliding_window": 4096}, "sliding_window = 4096 is not implemented"),
    ({**read_config("llada-0"), "attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not implemented"),
    ({**read_config("dream-0"), "use_qk_norm": True}, "use_qk_norm = True is not implemented"),
    ({**read_config("dream-0"), "embedding_multiplier": 12.0}, "embedding_multiplier = 12.0 is not implemented"),
    ({**read_config("dream-0"), "moe_intermediate_size": 1408}, "moe_intermediate_size = 1408 is not implemented"),
    (
        {**read_config("dream-0"), "layer_types": ["full_attention", "sliding_attention"]},
        "layer_types = .* is not implemented",
    ),
    ({**read_config("dream-0"), "is_causal": True}, "is_causal = True is not implemented"),
    (
        {**read_config("dream-0"), "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
        "rope_scaling: rope_type = 'dynamic' is not implemented; only 'default' or 'linear' or 'llama3' or 'yarn' is",
    ),
    (
        {**read_config("dream-0"), "rope_scaling": {"rope_type": "default", "factor": 4.0}},
        "rope_scaling: factor = 4.0 is not",
    ),
    (
        {**read_config("dream-0"), "rope_scaling": {"type": "default", "mrope_section": [2, 2]}},
        "rope_scaling: mrope_section =",
    ),
    ({**read_config("dream-0"), "rope_scaling": "yarn"}, "rope_scaling = 'yarn', where an object is needed"),
    (
        {**read_config("dream-0"), "rope_parameters": {"partial_rotary_factor": 0.5}},
        "partial_rotary_factor = 0.5 is not impl",
    ),
    ({**read_config("dream-0"), "rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "full_attention = "),
]


@pytest.mark.parametrize(("config", "message"), UNREAD, ids=lambda value: "" if isinstance(value, dict) else value)
def test_a_key_that_changes_numbers_and_is_not_read_is_named(
    catalogue: Catalogue, tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"config.json: .*{message}"):
        describe_model(tmp_path, catalogue)


HARMLESS: list[tuple[str, dict[str, Any]]] = [
    ("dream-0", {"rope_scaling": {"rope_type": "default"}}),
    ("dream-0", {"rope_scaling": {"type": "default", "factor": 1.0}}),
    ("dream-0", {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}}),
    ("dream-0", {"partial_rotary_factor": 1.0, "sliding_window": 131072, "max_window_layers": 28}),
    ("dream-0", {"layer_types": ["full_attention"] * 8, "is_causal": False, "num_experts": 0, "mup": None}),
    (
        "dream-0",
        {
            "temperature": 0.7,
            "use_cache": True,
            "attention_dropout": 0.1,
            "unsloth_version": "2025.1",
            "torchscript": True,
        },
    ),
    ("llada-0", {"rope_scaling": None, "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}}),
    (
        "llada-0",
        {
            "alibi_bias_max": 8.0,
            "attention_layer_norm_with_affine": True,
            "init_cutoff_factor": None,
            "precision": "amp",
        },
    ),
    ("llada-0", {"mlp_ratio": 7, "embedding_dropout": 0.0, "flash_attention": True, "init_fn": "mitchell"}),
]


@pytest.mark.parametrize(("name", "more"), HARMLESS, ids=str)
def test_a_key_that_changes_nothing_may_be_there(
    catalogue: Catalogue, tmp_path: Path, name: str, more: dict[str, Any]
) -> None:
    folder = write_checkpoint(tmp_path, {**read_config(name), **more}, weights_of(name))
    assert logits(folder, catalogue).equal(logits(CASES / name, catalogue))


@pytest.mark.parametrize("how", ["null", "absent"])
def test_an_mlp_s_size_may_be_a_multiple_of_the_hidden_one(catalogue: Catalogue, tmp_path: Path, how: str) -> None:
    config = {**read_config("llada-0"), "mlp_hidden_size": None, "mlp_ratio": 3}
    if how == "absent":
        del config["mlp_hidden_size"]
    assert read_config("llada-0")["mlp_hidden_size"] == 3 * config["d_model"]
    folder = write_checkpoint(tmp_path, config, weights_of("llada-0"))
    assert logits(folder, catalogue).equal(logits(CASES / "llada-0", catalogue))
    for ratio in (0, -1, 2.5, "3", True):
        (folder / "config.json").write_text(json.dumps({**config, "mlp_ratio": ratio}), encoding="utf-8")
        refused(folder, catalogue, "config.json: mlp_ratio = ")
    (folder / "config.json").write_text(json.dumps({**config, "mlp_ratio": None}), encoding="utf-8")
    refused(folder, catalogue, "config.json: mlp_hidden_size = None, where an int is needed")


def test_what_rope_reads_is_what_it_says() -> None:
    assert rope_theta({"rope_theta": 5.0, "rope_scaling": None, "partial_rotary_factor": None}) == 5.0
    assert rope_theta({"rope_theta": 5.0, "rope_parameters": {"rope_theta": 7.0}}) == 7.0
    with pytest.raises(CheckpointError, match=r"num_experts = 8, router_z = 0.5 are not implemented"):
        refuse_unread({"num_experts": 8, "router_z": 0.5, "rope_theta": 3.0, "hidden": 4}, {"rope_theta"})
