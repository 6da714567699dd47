"""The decoder's switches, each held to transformers: small random models of its classes, whose weights are read from files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lookalikes import bidirectional_logits
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    Ministral3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from esdllm import Catalogue, CheckpointError, from_module, load_model
from esdllm.runtime.plain import full_logits
from esdllm_models.rope import Llama3, QueryScaling, Rope, Yarn, rope_of

VOCAB, MASK, EOS = 96, 95, 94
TOKENS = torch.randint(0, 90, (2, 40), generator=torch.Generator().manual_seed(0))
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": EOS,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
    "attn_implementation": "eager",
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
YARN = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}


def shaken(config: Any) -> Any:
    """Return a random model in which every weight, norms and biases too, shows in the logits."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
    return model


def save(model: Any, folder: Path, **changes: Any) -> Path:
    """Write a model as its checkpoint is written; `changes` go into config.json, None takes a key out."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), "mask_token_id": MASK, **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}), encoding="utf-8")
    return folder


VARIANTS: list[tuple[str, type, dict[str, Any]]] = [
    # Qwen3: norms of heads, head_dim free, biases on all four projections if any
    ("a2d-qwen3-mdlm", Qwen3Config, {"head_dim": 16}),
    ("a2d-qwen3-mdlm", Qwen3Config, {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True}),
    ("a2d-qwen3-mdlm", Qwen3Config, {"head_dim": 12, "num_key_value_heads": 4, "rope_parameters": YARN}),
    ("a2d-qwen3-mdlm", Qwen3Config, {"head_dim": 8, "num_key_value_heads": 1, "hidden_act": "gelu"}),
    ("a2d-qwen3-mdlm", Qwen3Config, {"head_dim": 8, "hidden_act": "gelu_pytorch_tanh", "rope_parameters": LLAMA3}),
    # Qwen2: biases on queries, keys and values alone
    ("a2d-qwen2-mdlm", Qwen2Config, {}),
    ("a2d-qwen2-mdlm", Qwen2Config, {"tie_word_embeddings": True, "hidden_act": "relu"}),
    ("a2d-qwen2-mdlm", Qwen2Config, {"rope_parameters": {**YARN, "attention_factor": 1.5, "truncate": False}}),
    ("open-dcoder", Qwen2Config, {"rope_parameters": {**YARN, "beta_fast": 8.0, "beta_slow": 2.0}}),
    ("fast-dllm-v2", Qwen2Config, {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}}),
    # Llama: any bias, llama3's RoPE
    ("a2d-llama-mdlm", LlamaConfig, {"attention_bias": True}),
    ("a2d-llama-mdlm", LlamaConfig, {"mlp_bias": True, "head_dim": 16}),
    ("a2d-llama-mdlm", LlamaConfig, {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}),
    ("a2d-llama-mdlm", LlamaConfig, {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3}}),
    ("stable-diffcoder", LlamaConfig, {"mlp_bias": True, "rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    ("illada", LlamaConfig, {"attention_bias": True, "tie_word_embeddings": True}),
    # Qwen3-MoE: which layers have experts, what their outputs weigh
    ("rnd1", Qwen3MoeConfig, {**EXPERTS, "norm_topk_prob": True, "head_dim": 16}),
    ("rnd1", Qwen3MoeConfig, {**EXPERTS, "norm_topk_prob": False, "mlp_only_layers": [1], "attention_bias": True}),
    ("sdar_moe", Qwen3MoeConfig, {**EXPERTS, "norm_topk_prob": True, "decoder_sparse_step": 2, "head_dim": 8}),
    ("sdar_moe", Qwen3MoeConfig, {**EXPERTS, "num_experts_per_tok": 8, "head_dim": 8, "tie_word_embeddings": True}),
]
MODEL_TYPES = {"a2d-qwen3-mdlm": "a2d-qwen3", "a2d-qwen2-mdlm": "a2d-qwen2", "a2d-llama-mdlm": "a2d-llama"}
MODEL_TYPES |= {"open-dcoder": "qwen2", "fast-dllm-v2": "Fast_dLLM_Qwen", "stable-diffcoder": "llama"}


@pytest.mark.parametrize(
    ("family", "kind", "changes"), VARIANTS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_switched_decoder_s_logits_are_those_of_transformers(
    family: str, kind: type, changes: Mapping[str, Any], catalogue: Catalogue, tmp_path: Path
) -> None:
    model = shaken(kind(**{**SIZES, **changes}))
    folder = save(model, tmp_path, model_type=MODEL_TYPES.get(family, family))
    adapter = load_model(folder, "cpu", catalogue=catalogue, family=family).adapter
    together = torch.zeros_like(TOKENS) if adapter.spec.attention else None
    expected = bidirectional_logits(model, TOKENS)
    assert expected.std() > 0.3
    torch.testing.assert_close(full_logits(adapter, TOKENS, together), expected, atol=2e-5, rtol=1e-5)


MINISTRAL = [
    {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
    {**YARN, "factor": 2.0, "llama_4_scaling_beta": 0.5},
    {**YARN, "llama_4_scaling_beta": 0.3, "beta_fast": 4.0},
]


@pytest.mark.parametrize("rope", MINISTRAL, ids=["as-published", "attention-factor", "fast"])
def test_queries_scaled_by_their_position_are_those_of_transformers(
    rope: Mapping[str, Any], catalogue: Catalogue, tmp_path: Path
) -> None:
    config = Ministral3Config(**{**SIZES, "rope_parameters": rope, "head_dim": 16, "sliding_window": None})
    model = shaken(config)
    renamed = {
        name.replace("model.", "encoder.").replace("lm_head", "diffusion_head"): weight.detach().clone()
        for name, weight in model.state_dict().items()
    }
    from helpers import write_checkpoint

    told = {**config.to_dict(), "model_type": "nemotron_labs_diffusion", "mask_token_id": MASK}
    folder = write_checkpoint(tmp_path, {key: value for key, value in told.items() if key != "dtype"}, renamed)
    adapter = load_model(folder, "cpu", catalogue=catalogue).adapter
    found = full_logits(adapter, TOKENS, torch.zeros_like(TOKENS))
    torch.testing.assert_close(found, bidirectional_logits(model, TOKENS), atol=2e-5, rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------------- RoPE

ROPES: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 3.0},
    YARN,
    {**YARN, "factor": 40.0, "original_max_position_embeddings": 4096, "rope_theta": 1e6},
    {**YARN, "beta_fast": 64.0, "beta_slow": 0.5},
    {**YARN, "beta_fast": 1.0, "beta_slow": 1.0},
    {**YARN, "truncate": False},
    {**YARN, "mscale": 0.707, "mscale_all_dim": 0.5},
    {**YARN, "mscale": 0.707},
    {**YARN, "attention_factor": 0.8},
    {**YARN, "factor": 1.0},
    {**YARN, "original_max_position_embeddings": 100_000},
    LLAMA3,
    {**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192, "rope_theta": 5e5},
    {**LLAMA3, "low_freq_factor": 0.5, "high_freq_factor": 20.0},
]


@pytest.mark.parametrize("dim", [4, 16, 128])
@pytest.mark.parametrize("told", ROPES, ids=str)
def test_frequencies_and_their_factor_are_those_of_transformers(told: dict[str, Any], dim: int) -> None:
    told = {"rope_theta": 10_000.0, **told}
    config = LlamaConfig(**{**SIZES, "head_dim": dim, "rope_parameters": dict(told)})
    found = rope_of({"rope_parameters": told, "max_position_embeddings": 64}, dim)
    if told["rope_type"] == "default":
        expected, factor = 10_000.0 ** -(torch.arange(0, dim, 2) / dim), 1.0
    else:
        expected, factor = ROPE_INIT_FUNCTIONS[told["rope_type"]](config, torch.device("cpu"))
    torch.testing.assert_close(found.frequencies(), expected, rtol=2e-6, atol=0)
    assert found.attention_factor == pytest.approx(factor)


def test_rope_is_read_wherever_it_is_told() -> None:
    length = {"max_position_embeddings": 64}
    yarn = {key: value for key, value in YARN.items() if key != "rope_theta"}
    old = {**length, "rope_theta": 10_000.0, "rope_scaling": {**yarn, "type": yarn["rope_type"]}}
    del old["rope_scaling"]["rope_type"]
    new = {**length, "rope_parameters": YARN}
    assert rope_of(old, 8) == rope_of(new, 8) == rope_of({**old, **new, "rope_theta": 5.0}, 8)
    assert isinstance(rope_of(new, 8).stretch, Yarn)
    plain = Rope(10_000.0, 8)
    for config in (
        {"rope_theta": 10_000},
        {"rope_theta": 10_000.0, "rope_scaling": False},
        {"rope_theta": 10_000.0, "rope_scaling": {}},
        {"rope_theta": 10_000.0, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "factor": None}},
    ):
        assert rope_of(config, 8) == plain
    told = {key: value for key, value in YARN.items() if key != "factor"}
    assert rope_of({**length, "rope_parameters": told}, 8) == rope_of({**length, "rope_parameters": YARN}, 8)  # 64 / 16
    short = {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"}
    assert rope_of({"max_position_embeddings": 32, "rope_parameters": short}, 8).stretch == Llama3(8.0, 1.0, 4.0, 32)
    half = rope_of({"rope_theta": 10_000.0, "partial_rotary_factor": 0.5}, 8, partial=True)
    assert half == rope_of({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, 8, partial=True)
    assert half == Rope(10_000.0, 4)
    scaled = rope_of({**length, "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1}}, 8, scaled=True)
    assert scaled.queries == QueryScaling(0.1, 16)


NO_ROPE: list[tuple[dict[str, Any], str]] = [
    (
        {"rope_theta": 1e4, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "rope_type = 'dynamic' is not implemented",
    ),
    (
        {"rope_theta": 1e4, "rope_scaling": {"type": "ntk", "factor": 2.0}},
        "rope_scaling: type = 'ntk' is not implemented",
    ),
    ({"rope_theta": 1e4, "rope_scaling": [2.0]}, r"rope_scaling = \[2\.0\], where an object is needed"),
    ({"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear"}}, "factor = None, where a float is needed"),
    (
        {"rope_theta": 1e4, "rope_scaling": {**YARN, "mscale": -1.0, "mscale_all_dim": 1.0}},
        "mscale = -1.0, where a finite",
    ),
    (
        {"rope_theta": 1e4, "rope_scaling": {**YARN, "beta_fast": 1.0, "beta_slow": 2.0}},
        "beta_slow = 2 must not be above",
    ),
    ({"rope_theta": 1.0, "rope_scaling": {**YARN, "rope_theta": 1.0}}, "yarn needs rope_theta above 1"),
    ({"rope_theta": 1e4, "rope_scaling": {**YARN, "truncate": "no"}}, "truncate = 'no', where a bool is needed"),
    (
        {"rope_theta": 1e4, "rope_scaling": {**YARN, "llama_4_scaling_beta": 0.1}},
        "llama_4_scaling_beta = 0.1 is not impl",
    ),
    ({"rope_theta": 1e4, "rope_scaling": {**LLAMA3, "high_freq_factor": 1.0}}, "low_freq_factor = 1 must be below"),
    (
        {"rope_theta": 1e4, "rope_scaling": {**LLAMA3, "beta_fast": 8.0}},
        "rope_scaling: beta_fast = 8.0 is not implemented",
    ),
    (
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        "rope_parameters: full_attention = .* is not implemented",
    ),
    ({"rope_theta": 1e4, "partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not implemented"),
    (
        {"rope_scaling": YARN, "rope_parameters": {"rope_theta": -1.0}},
        "rope_theta = -1.0, where a finite number above 0",
    ),
]


@pytest.mark.parametrize(("config", "message"), NO_ROPE, ids=lambda value: value if isinstance(value, str) else "")
def test_rope_that_is_not_implemented_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^config\.json: .*{message}"):
        rope_of({"max_position_embeddings": 64, **config}, 8)


# ------------------------------------------------------------------------------------------- modules that are taken over

MODULES: list[tuple[str, type, dict[str, Any]]] = [
    ("a2d-qwen3-mdlm", Qwen3Config, {"head_dim": 16, "attention_bias": True}),
    ("a2d-qwen3-mdlm", Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True, "rope_parameters": YARN}),
    ("a2d-qwen2-mdlm", Qwen2Config, {}),
    ("a2d-llama-mdlm", LlamaConfig, {"attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3}),
]


@pytest.mark.parametrize(
    ("family", "kind", "changes"), MODULES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_module_s_own_weights_are_computed_with(
    family: str, kind: type, changes: Mapping[str, Any], catalogue: Catalogue
) -> None:
    model = shaken(kind(**{**SIZES, **changes}))
    expected = bidirectional_logits(model, TOKENS)
    model.config.model_type, model.config.mask_token_id = MODEL_TYPES[family], MASK
    adapter: Any = from_module(model, catalogue=catalogue, family=family).adapter
    torch.testing.assert_close(full_logits(adapter, TOKENS), expected, atol=2e-5, rtol=1e-5)
    own = {weight.data_ptr() for weight in model.parameters()}
    norms = [norm for layer in adapter.layers for norm in (layer.q_norm, layer.k_norm) if norm is not None]
    assert all(norm.data_ptr() in own for norm in norms)
    assert len(norms) == (6 if "qwen3" in family else 0)
    if norms:
        with torch.no_grad():
            norms[2].mul_(2)  # the module's own
        assert (full_logits(adapter, TOKENS) - expected).abs().max() > 0.01


def test_another_rope_than_the_config_s_is_seen_in_a_module(catalogue: Catalogue) -> None:
    model = shaken(LlamaConfig(**{**SIZES, "rope_parameters": LLAMA3}))
    model.config.model_type, model.config.mask_token_id = "a2d-llama", MASK
    model.config.rope_parameters = {"rope_type": "default", "rope_theta": 10_000.0}
    with pytest.raises(CheckpointError, match=r"inv_freq' are not RoPE's frequencies"):
        from_module(model, catalogue=catalogue, family="a2d-llama-mdlm")
