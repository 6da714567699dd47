"""The model families: logits of recorded checkpoints, the laws of their kind, and what each config may say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import CASES, FAMILIES, Case, recorded, weights
from safetensors.torch import save_file
from torch import Tensor

from esdllm import CheckpointError, LoadPlan, UnavailableError, load_model
from esdllm.runtime.plain import full_logits, layers
from esdllm.testing import check_model_family
from esdllm_models.spread import Spread

CPU = torch.device("cpu")
BIDIRECTIONAL = [case for case in CASES if not case.family.endswith("bd3lm")]
PADDED = [case for case in BIDIRECTIONAL if "logits_bidirectional_padded" in recorded(case.folder)]
BLOCKED = [
    case for case in CASES if "logits_block_causal" in recorded(case.folder) and not case.family.endswith("mdlm")
]
MIXTURES = [case for case in CASES if "num_experts" in case.config()]


def named(case: Case) -> str:
    return case.family


def near(found: Tensor, expected: Tensor) -> None:
    """Compare logits of up to 40 in float32, which two implementations of the public code have up to 2.6e-5 apart."""
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=0)


# ------------------------------------------------------------------------------------------------------------- logits


@pytest.mark.parametrize("case", BIDIRECTIONAL, ids=named)
def test_logits_are_those_of_the_public_code(case: Case) -> None:
    of = recorded(case.folder)
    adapter = case.load()
    together = torch.zeros_like(of["tokens"]) if adapter.spec.attention else None  # one block
    near(full_logits(adapter, of["tokens"], together), of["logits_bidirectional"])


@pytest.mark.parametrize("case", PADDED, ids=named)
def test_hidden_keys_are_hidden_as_in_the_public_code(case: Case) -> None:
    of, adapter = recorded(case.folder), case.load()
    shown = of["attention_mask_padded"].bool()
    assert not shown.all()
    positions = torch.arange(shown.shape[1]).expand(shown.shape)
    bias = torch.zeros(shown.shape).masked_fill(~shown, float("-inf"))
    *_, (hidden, _) = layers(adapter, adapter.embed(of["tokens"]), positions, bias)
    near(adapter.logits(hidden)[shown], of["logits_bidirectional_padded"][shown])


@pytest.mark.parametrize("case", BLOCKED, ids=named)
def test_logits_block_by_block_are_those_of_the_public_code(case: Case) -> None:
    of = recorded(case.folder)
    block, start = int(of["block_length"]), int(of["prefix_length"])
    adapter = case.load(block_size=block)
    numbers = (torch.arange(of["tokens"].shape[1]) // block).expand(of["tokens"].shape)
    found = full_logits(adapter, of["tokens"], numbers)
    near(found, of["logits_block_causal"])
    near(found[:, start : start + block], of["logits_block_step"])


def test_nemotron_writes_keys_causally_and_denoises_a_block_in_both_directions() -> None:
    case = next(case for case in CASES if case.family == "nemotron_labs_diffusion")
    of, adapter = recorded(case.folder), case.load()
    start, block = int(of["prefix_length"]), int(of["block_length"])
    places = torch.arange(of["tokens"].shape[1]).expand(of["tokens"].shape)
    causal = full_logits(adapter, of["tokens"], places)
    near(causal, of["logits_causal"])
    near(causal[:, start : start + block], of["logits_block_write"])
    seen = places.clamp(max=start)[:, : start + block]  # the block is one, whose positions see each other
    found = full_logits(adapter, of["tokens"][:, : start + block], seen)
    near(found[:, start:], of["logits_block_step"])


@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_family_s_laws_hold_with_its_checkpoint(case: Case) -> None:
    check_model_family(case.made(), case.config(block_size=4), folder=FAMILIES / case.folder)


# --------------------------------------------------------------------------------------------------- weights and devices


def tensors(part: Any) -> dict[int, int]:
    """Return the bytes of all tensors of a model, by where their memory begins."""
    if isinstance(part, Tensor):
        storage = part.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}
    if isinstance(part, (tuple, list)):
        return {at: held for one in part for at, held in tensors(one).items()}
    if hasattr(part, "__slots__"):
        inside = [getattr(part, name) for name in part.__slots__ if name != "__weakref__"]
        return {at: held for one in inside for at, held in tensors(one).items()}
    return {}


@pytest.mark.parametrize("quantize", [None, "int8-weight-only", "int4-weight-only"])
@pytest.mark.parametrize("case", BIDIRECTIONAL, ids=named)
def test_the_bytes_that_are_told_are_those_that_are_held(case: Case, quantize: str | None) -> None:
    sizes = {
        "hidden_size": 64,
        "head_dim": 32,
        "intermediate_size": 96,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    }
    sizes |= {"moe_intermediate_size": 32, "expert_intermediate_size": 32, "dense_intermediate_size": 96}
    config = case.config()
    config |= {key: value for key, value in sizes.items() if key in config}
    plan = LoadPlan(torch.bfloat16 if quantize == "int4-weight-only" else torch.float32, CPU, quantize=quantize, seed=1)
    adapter: Any = case.made().load(Path(), config, plan)
    held = tensors((adapter.embedding, adapter.norm, adapter.head, adapter.layers))
    assert sum(held.values()) == case.made().weight_bytes(config, plan)


@pytest.mark.parametrize("quantize", ["int8-weight-only"])
@pytest.mark.parametrize("case", BIDIRECTIONAL, ids=named)
def test_quantised_logits_are_near(case: Case, quantize: str) -> None:
    tokens = recorded(case.folder)["tokens"]
    whole = full_logits(case.load(), tokens)
    found = full_logits(case.load(plan=LoadPlan(torch.float32, CPU, quantize=quantize)), tokens)
    assert 1e-4 < (found - whole).norm() / whole.norm() < 0.05


@pytest.mark.parametrize("case", BIDIRECTIONAL, ids=named)
def test_layers_on_several_devices_give_the_same(case: Case) -> None:
    tokens = recorded(case.folder)["tokens"]
    there = torch.device("cpu:0")
    plan = LoadPlan(torch.float32, CPU, (CPU, there, there), there)
    spread = case.load(plan=plan)
    assert isinstance(spread, Spread)
    assert full_logits(spread, tokens).equal(full_logits(case.load(), tokens))
    places, order = spread.encode(torch.arange(5).expand(1, 5)), torch.tensor([3, 1])
    hidden = spread.embed(tokens[:1, :5])
    some, every = spread.project(2, hidden, places, order), spread.project(2, hidden, places)
    torch.testing.assert_close(some.queries, every.queries[:, order])


@pytest.mark.parametrize(
    "case", [case for case in BIDIRECTIONAL if case.config().get("tie_word_embeddings")], ids=named
)
def test_a_head_that_is_the_embedding_takes_no_memory_and_may_be_stored_all_the_same(
    case: Case, tmp_path: Path
) -> None:
    adapter: Any = case.load()
    assert adapter.head.weight.data_ptr() == adapter.embedding.data_ptr()
    stored = {**weights(case.folder), "lm_head.weight": torch.full((3,), 7.0)}
    save_file(stored, tmp_path / "model.safetensors")
    tokens = recorded(case.folder)["tokens"]
    assert full_logits(case.load(tmp_path), tokens).equal(full_logits(adapter, tokens))
    with pytest.raises(CheckpointError, match=r"lm_head.weight"):
        case.load(tmp_path, tie_word_embeddings=False)


@pytest.mark.parametrize("case", BIDIRECTIONAL, ids=named)
def test_an_adapter_is_merged_into_any_linear_layer(case: Case, tmp_path: Path) -> None:
    """Into a projection of attention, one of the feed-forward or of an expert, and a norm that takes another's place."""
    own = weights(case.folder)
    names = [
        next(
            name for name in own if "layers.1." in name and name.endswith(("q_proj.weight", "query_key_value.weight"))
        ),
        next(name for name in own if "layers.2." in name and name.endswith("down_proj.weight")),
        next(name for name in own if "layers.0." in name and name.endswith("layernorm.weight")),
    ]
    adapter, merged = {}, dict(own)
    for name in names[:2]:
        a, b = torch.randn(2, own[name].shape[1]) / 4, torch.randn(own[name].shape[0], 2) / 4
        module = f"base_model.model.{name.removesuffix('.weight')}"
        adapter |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        merged[name] = own[name] + 2 * b @ a
    merged[names[2]] = own[names[2]] * 1.5
    adapter[f"base_model.model.{names[2].removesuffix('.weight')}.modules_to_save.weight"] = merged[names[2]]
    folder, by_hand = tmp_path / "adapter", tmp_path / "merged"
    folder.mkdir(), by_hand.mkdir()
    save_file(adapter, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": "it"}
    (folder / "adapter_config.json").write_text(json.dumps(said), encoding="utf-8")
    save_file(merged, by_hand / "model.safetensors")
    tokens = recorded(case.folder)["tokens"]
    found = full_logits(case.load(plan=LoadPlan(torch.float32, CPU, lora=folder)), tokens)
    near(found, full_logits(case.load(by_hand), tokens))
    assert not torch.allclose(found, full_logits(case.load(), tokens), atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("case", BIDIRECTIONAL, ids=named)
def test_a_pass_compiles_whole(case: Case) -> None:
    adapter, tokens = case.load(), recorded(case.folder)["tokens"]
    torch.compiler.reset()  # of other families' passes, which would count as this one's
    with torch.inference_mode():
        found = torch.compile(full_logits, fullgraph=True, dynamic=False, backend="aot_eager")(adapter, tokens)
        near(found, full_logits(adapter, tokens))


# ------------------------------------------------------------------------------------------------------------ refusals

COMMON: list[tuple[dict[str, Any], str]] = [
    ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not implemented"),
    (
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}},
        "rope_scaling: rope_type = 'longrope' is not impl",
    ),
    ({"rope_scaling": {"rope_type": "default", "factor": 8.0}}, "rope_scaling: factor = 8.0 is not implemented"),
    ({"hidden_act": "swiglu_oai"}, "hidden_act = 'swiglu_oai' is not implemented; only 'silu' or"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes' is not implemented"),
    ({"num_attention_heads": 7}, "7 heads"),
    ({"rms_norm_eps": 0}, "rms_norm_eps = 0, where a finite number above 0"),
    ({"vocab_size": None}, "vocab_size = None, where an int is needed"),
    ({"mask_token_id": 4000}, "mask_token_id = 4000 is outside the vocabulary"),
    ({"use_mrope": True, "mrope_scale": 2.0}, "use_mrope = True, mrope_scale = 2.0 are not implemented"),
    ({"embedding_multiplier": 12.0}, "embedding_multiplier = 12.0 is not implemented"),
    ({"post_norm": True}, "post_norm = True is not implemented"),
]


@pytest.mark.parametrize(
    ("changes", "message"), COMMON, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ""
)
@pytest.mark.parametrize("case", CASES, ids=named)
def test_a_config_that_is_not_implemented_is_refused_by_name(case: Case, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^config\.json: .*{message}"):
        case.made().spec(case.config(**changes))


OWN: list[tuple[str, dict[str, Any], str]] = [
    ("sdar", {"head_dim": None}, "head_dim = None, where an int is needed"),
    ("sdar", {"block_size": 0}, "block_size = 0, where a whole number from 1"),
    ("sdar", {"use_sliding_window": True}, "use_sliding_window = True is not implemented"),
    ("sdar", {"num_experts": 8}, "num_experts = 8 is not implemented"),
    ("sdar_moe", {"mlp_only_layers": [0, 1, 2]}, "no layer has experts"),
    ("sdar_moe", {"mlp_only_layers": "0"}, "mlp_only_layers = '0', where a list of whole numbers"),
    ("sdar_moe", {"decoder_sparse_step": 4}, "no layer has experts"),
    ("sdar_moe", {"num_experts_per_tok": 17}, "cannot choose 17 of num_experts = 16"),
    ("sdar_moe", {"num_local_experts": 8}, "num_local_experts = 8 is not implemented; only None or 16"),
    ("sdar_moe", {"num_experts": None}, "num_experts = None, where an int is needed"),
    ("sdar_moe", {"norm_topk_prob": 1.5}, "norm_topk_prob = 1.5 is not implemented"),
    ("rnd1", {"is_causal": True}, "is_causal = True is not implemented"),
    ("rnd1", {"shared_expert_intermediate_size": 8}, "shared_expert_intermediate_size = 8 is not implemented"),
    ("llada2_moe", {"topk_group": 5}, "cannot choose 4 of num_experts = 16 in 5 of 4 groups"),
    ("llada2_moe", {"n_group": 5}, "cannot choose 4 of num_experts = 16 in 2 of 5 groups"),
    ("llada2_moe", {"num_experts_per_tok": 9}, "2 of 4 groups of num_experts = 16 have fewer than the 9"),
    ("llada2_moe", {"partial_rotary_factor": 0.01}, "partial_rotary_factor = 0.01 turns 0 of a head's 16 features"),
    ("llada2_moe", {"norm_head": True}, "norm_head = True is not implemented"),
    ("llada2_moe", {"first_k_dense_replace": 3}, "no layer has experts"),
    ("llada-moe", {"moe_layer_freq": [1, 0]}, "moe_layer_freq has 2 numbers, where num_hidden_layers = 3 are needed"),
    ("llada-moe", {"clip_qkv": 8.0}, "clip_qkv = 8.0 is not implemented"),
    ("llada-moe", {"head_dim": 16}, "head_dim = 16 is not implemented; only None or 12"),
    ("illada", {"layer_norm_eps": 1e-5}, "layer_norm_eps = 1e-05 is not implemented"),
    (
        "illada",
        {"rope_scaling": {"type": "yarn", "factor": 2.0}},
        "type = 'yarn' is not implemented; only 'default'",
    ),
    (
        "nemotron_labs_diffusion",
        {"dlm_paradigm": "autoregressive"},
        "dlm_paradigm = 'autoregressive' is not implemented",
    ),
    ("nemotron_labs_diffusion", {"mlp_bias": True}, "mlp_bias = True is not implemented"),
    ("a2d-qwen3-mdlm", {"rope_scaling": {"rope_type": "yarn", "factor": 0.5}}, "yarn needs .* a factor of at least 1"),
    (
        "a2d-llama-mdlm",
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "low_freq_factor = None, where a float",
    ),
    ("a2d-llama-mdlm", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not implemented"),
    ("a2d-llama-mdlm", {"mlp_bias": "no"}, "mlp_bias = 'no' is not implemented"),
]


@pytest.mark.parametrize(
    ("family", "changes", "message"), OWN, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_a_family_does_not_compute_is_refused_by_name(family: str, changes: dict[str, Any], message: str) -> None:
    case = next(case for case in CASES if case.family == family)
    with pytest.raises(CheckpointError, match=rf"^config\.json: .*{message}"):
        case.made().spec(case.config(**changes))


def test_experts_of_a_module_are_refused_with_what_would_do() -> None:
    case = next(case for case in CASES if case.family == "rnd1")
    with pytest.raises(
        UnavailableError, match=r"experts' weights of a Linear lie apart.*save_pretrained\(\), and load"
    ):
        case.made().from_module(torch.nn.Linear(2, 2), case.config())


def test_a_folder_is_read_by_the_family_that_its_config_tells(tmp_path: Path) -> None:
    for case in BIDIRECTIONAL:
        folder = Path(shutil.copytree(FAMILIES / case.folder, tmp_path / case.folder))
        (folder / "config.json").write_text(json.dumps(case.config()), encoding="utf-8")
        told = case.family if case.family.startswith(("a2d-", "open-")) else None  # which config.json does not tell
        assert load_model(folder, "cpu", family=told).spec == case.made().spec(case.config())
