"""LLaDA2 and LLaDA-MoE in every form that their configs can tell, held to a second writing of their layers, row by row.

It shares no code and no names with the package: weights are drawn by the names and shapes that the checkpoints have.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_checkpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from esdllm import Catalogue, CheckpointError, load_model
from esdllm.runtime.plain import full_logits

VOCAB, MASK, EOS = 64, 63, 62
TOKENS = torch.randint(0, 60, (2, 19), generator=torch.Generator().manual_seed(0))

LLADA2: dict[str, Any] = {
    "model_type": "llada2_moe",
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 8,
    "num_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "partial_rotary_factor": 0.5,
    "rope_theta": 600_000,
    "rms_norm_eps": 1e-6,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_bias": False,
    "max_position_embeddings": 64,
    "mask_token_id": MASK,
    "eos_token_id": EOS,
    "score_function": "sigmoid",
    "norm_topk_prob": True,
    "moe_router_enable_expert_bias": True,
    "tie_word_embeddings": False,
}
LLADA_MOE: dict[str, Any] = {
    "model_type": "llada",
    "architectures": ["LLaDAMoEModelLM"],
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "dense_intermediate_size": 48,
    "expert_intermediate_size": 24,
    "shared_expert_intermediate_size": None,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "qk_layernorm": True,
    "moe_layer_freq": [1, 1, 1],
    "moe_router_enable_expert_bias": False,
    "moe_router_score_function": "softmax",
    "norm_topk_prob": None,
    "routed_scaling_factor": 1,
    "router_num_group": None,
    "router_topk_group": None,
    "attention_bias": False,
    "clip_qkv": None,
    "rope_theta": 50_000,
    "rope_scaling": None,
    "partial_rotary_factor": 1,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "mask_token_id": MASK,
    "eos_token_id": EOS,
    "tie_word_embeddings": False,
}


class Second:
    """The model, written a second time. Shapes: N positions of one row, C hidden."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.two = config, config["model_type"] == "llada2_moe"
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.dim = config.get("head_dim") or config["hidden_size"] // self.heads
        self.draw, self.weights = torch.Generator().manual_seed(0), dict[str, Tensor]()

    def weight(self, name: str, *shape: int, around: float = 0.0, scale: float = 1.0) -> Tensor:
        """Return a weight, drawn when it is first asked for."""
        if name not in self.weights:
            drawn = torch.randn(shape, generator=self.draw) * (scale / shape[-1] ** 0.5 if len(shape) > 1 else 0.3)
            self.weights[name] = drawn + around
        return self.weights[name]

    def linear(self, x: Tensor, name: str, outputs: int, bias: bool = False, scale: float = 1.0) -> Tensor:
        made = x @ self.weight(f"{name}.weight", outputs, x.shape[-1], scale=scale).T
        return made + self.weight(f"{name}.bias", outputs) if bias else made

    def norm(self, x: Tensor, name: str) -> Tensor:
        rms = (x.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]).sqrt()
        return x / rms * self.weight(f"{name}.weight", x.shape[-1], around=1.0)

    def turned(self, x: Tensor) -> Tensor:
        """Return x (N, H, D), its first features turned."""
        dim = int(self.dim * self.config["partial_rotary_factor"])
        pairs = torch.arange(0, dim, 2).float() / dim
        angles = torch.arange(len(x)).float()[:, None] / self.config["rope_theta"] ** pairs
        cos, sin = (torch.cat([part, part], -1)[:, None] for part in (angles.cos(), angles.sin()))
        own, rest = x[..., :dim], x[..., dim:]
        swapped = torch.cat([-own[..., dim // 2 :], own[..., : dim // 2]], -1)
        return torch.cat([own * cos + swapped * sin, rest], -1)

    def attention(self, x: Tensor, at: str) -> Tensor:
        queries, keys = self.heads * self.dim, self.kv_heads * self.dim
        if self.two:
            joint = self.linear(x, f"{at}attention.query_key_value", queries + 2 * keys, self.config["use_qkv_bias"])
            parts, norms, normed = (
                joint.split([queries, keys, keys], -1),
                ("query_layernorm", "key_layernorm"),
                "use_qk_norm",
            )
            out, biased, inside = "dense", self.config["use_bias"], "attention"
        else:
            biased, inside, out = self.config["attention_bias"], "self_attn", "o_proj"
            sizes = {"q": queries, "k": keys, "v": keys}
            parts = tuple(self.linear(x, f"{at}self_attn.{n}_proj", size, biased) for n, size in sizes.items())
            norms, normed = ("q_norm", "k_norm"), "qk_layernorm"
        q, k, v = (part.unflatten(-1, (-1, self.dim)) for part in parts)
        if self.config[normed]:
            q, k = (self.norm(part, f"{at}{inside}.{name}") for part, name in zip((q, k), norms, strict=True))
        q, k = self.turned(q), self.turned(k)
        made = []
        for head in range(self.heads):
            shared = head * self.kv_heads // self.heads
            made.append((q[:, head] @ k[:, shared].T / self.dim**0.5).softmax(-1) @ v[:, shared])
        return self.linear(torch.cat(made, -1), f"{at}{inside}.{out}", x.shape[-1], biased)

    def mlp(self, x: Tensor, name: str, inside: int) -> Tensor:
        gate, up = (self.linear(x, f"{name}.{part}_proj", inside) for part in ("gate", "up"))
        return self.linear(gate * gate.sigmoid() * up, f"{name}.down_proj", x.shape[-1])

    def routed(self, x: Tensor, at: str) -> Tensor:
        """Return the feed-forward of x (N, C) in a layer with experts, row by row."""
        config, count = self.config, self.config["num_experts"]
        logits = self.linear(x, f"{at}mlp.gate", count, scale=4.0)
        scores = logits.sigmoid() if self.two else logits.softmax(-1)
        ranks = scores
        if self.two:
            ranks = scores + self.weight(f"{at}mlp.gate.expert_bias", count)
        elif config["moe_router_enable_expert_bias"]:
            scores = ranks = scores + self.weight(f"{at}mlp.expert_bias", count)
        rows = []
        for row, score, rank in zip(x, scores, ranks, strict=True):
            if self.two:
                groups = rank.unflatten(0, (config["n_group"], -1))
                best = groups.sort(-1, descending=True).values[:, :2].sum(-1).argsort(descending=True)
                closed = best[config["topk_group"] :]
                rank = groups.clone().index_fill(0, closed, float("-inf")).flatten()
            chosen = rank.argsort(descending=True)[: config["num_experts_per_tok"]]
            weigh = score[chosen]
            if self.two:
                weigh = (weigh / weigh.sum() if len(chosen) > 1 else weigh) * config["routed_scaling_factor"]
            width = config["moe_intermediate_size" if self.two else "expert_intermediate_size"]
            made = [
                w * self.mlp(row, f"{at}mlp.experts.{e}", width) for e, w in zip(chosen.tolist(), weigh, strict=True)
            ]
            rows.append(sum(made[1:], made[0]))
        for expert in range(count):  # all are stored, whether asked for here or not
            self.mlp(x[0], f"{at}mlp.experts.{expert}", width)
        return torch.stack(rows) + self.shared(x, at)

    def shared(self, x: Tensor, at: str) -> Tensor:
        if self.two:
            width = (self.config["num_shared_experts"] or 0) * self.config["moe_intermediate_size"]
            return self.mlp(x, f"{at}mlp.shared_experts", width) if width else torch.zeros_like(x)
        width = self.config["shared_expert_intermediate_size"]
        return self.mlp(x, f"{at}shared_expert", width) if width else torch.zeros_like(x)

    def logits(self, tokens: Tensor) -> Tensor:
        """Return (N, V) of a row's tokens (N,)."""
        config, hidden = self.config, self.config["hidden_size"]
        words = "model.word_embeddings" if self.two else "model.embed_tokens"
        x = self.weight(f"{words}.weight", VOCAB, hidden, scale=hidden**0.5)[tokens]
        for layer in range(config["num_hidden_layers"]):
            at = f"model.layers.{layer}."
            x = x + self.attention(self.norm(x, f"{at}input_layernorm"), at)
            normed = self.norm(x, f"{at}post_attention_layernorm")
            sparse = layer >= config["first_k_dense_replace"] if self.two else config["moe_layer_freq"][layer]
            inside = config["intermediate_size" if self.two else "dense_intermediate_size"]
            x = x + (self.routed(normed, at) if sparse else self.mlp(normed, f"{at}mlp", inside))
        x = self.norm(x, "model.norm")
        if config["tie_word_embeddings"]:
            return x @ self.weights[f"{words}.weight"].T
        return self.linear(x, "lm_head", VOCAB)


VARIANTS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (LLADA2, {}),
    (LLADA2, {"use_qkv_bias": True, "use_bias": True}),
    (LLADA2, {"num_shared_experts": 2, "first_k_dense_replace": 0}),
    (LLADA2, {"num_shared_experts": 0, "first_k_dense_replace": 2}),
    (LLADA2, {"num_shared_experts": None, "routed_scaling_factor": 1.0}),
    (LLADA2, {"num_experts_per_tok": 1, "topk_group": 1}),
    (LLADA2, {"n_group": 1, "topk_group": 1}),
    (LLADA2, {"n_group": 8, "topk_group": 4}),
    (LLADA2, {"n_group": 2, "topk_group": 1, "num_experts_per_tok": 4}),
    (LLADA2, {"partial_rotary_factor": 1.0, "num_key_value_heads": 4}),
    (LLADA2, {"partial_rotary_factor": 0.25, "head_dim": 24, "num_key_value_heads": 1}),
    (LLADA2, {"use_qk_norm": False, "tie_word_embeddings": True}),
    (LLADA2, {"score_function": "softmax", "norm_topk_prob": False, "moe_router_enable_expert_bias": False}),
    (LLADA_MOE, {}),
    (LLADA_MOE, {"norm_topk_prob": True, "moe_router_enable_expert_bias": True}),
    (LLADA_MOE, {"shared_expert_intermediate_size": 20, "moe_layer_freq": [0, 1, 1]}),
    (LLADA_MOE, {"shared_expert_intermediate_size": 24, "moe_layer_freq": [1, 0, 1], "num_key_value_heads": 2}),
    (LLADA_MOE, {"attention_bias": True, "qk_layernorm": False}),
    (LLADA_MOE, {"partial_rotary_factor": 0.5, "num_experts_per_tok": 8}),
    (LLADA_MOE, {"moe_router_score_function": "sigmoid", "routed_scaling_factor": 2.5, "num_experts_per_tok": 1}),
    (LLADA_MOE, {"router_num_group": 4, "router_topk_group": 2, "tie_word_embeddings": True}),
    (LLADA_MOE, {"dense_intermediate_size": None, "moe_router_enable_expert_bias": True, "norm_topk_prob": False}),
]


def written(config: dict[str, Any], folder: Path) -> tuple[Path, Tensor]:
    """Write a checkpoint; return its folder and the logits of TOKENS by the second writing."""
    second = Second(config)
    expected = torch.stack([second.logits(row) for row in TOKENS])
    return write_checkpoint(folder, config, {name: x.contiguous() for name, x in second.weights.items()}), expected


@pytest.mark.parametrize(
    ("base", "changes"), VARIANTS, ids=lambda value: "-".join(map(str, value)) if len(value) < 9 else ""
)
def test_logits_are_those_of_a_second_writing(
    base: dict[str, Any], changes: dict[str, Any], catalogue: Catalogue, tmp_path: Path
) -> None:
    folder, expected = written({**base, **changes}, tmp_path)
    model = load_model(folder, "cpu", catalogue=catalogue)
    together = torch.zeros_like(TOKENS) if model.spec.attention else None
    assert expected.std() > 0.3
    torch.testing.assert_close(full_logits(model.adapter, TOKENS, together), expected, atol=2e-5, rtol=1e-5)


MISSING = [
    (LLADA2, "model.layers.1.mlp.gate.expert_bias"),
    (LLADA2, "model.layers.2.mlp.experts.7.up_proj.weight"),
    (LLADA2, "model.layers.1.mlp.shared_experts.down_proj.weight"),
    (LLADA_MOE, "model.layers.0.mlp.gate.weight"),
]


@pytest.mark.parametrize(("config", "name"), MISSING, ids=lambda value: value if isinstance(value, str) else "")
def test_a_weight_that_is_missing_is_named(
    config: dict[str, Any], name: str, catalogue: Catalogue, tmp_path: Path
) -> None:
    folder, _ = written(config, tmp_path)
    held = load_file(folder / "model.safetensors")
    save_file({other: x for other, x in held.items() if other != name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        load_model(folder, "cpu", catalogue=catalogue)


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (LLADA2, {"num_experts": 16}, r"missing: model\.layers\.1\.mlp\.experts\.10\.down_proj"),
        (LLADA2, {"moe_intermediate_size": 32}, "moe_intermediate_size = 32.*= 24 would fit"),
        (
            LLADA2,
            {"num_shared_experts": 2},
            "num_shared_experts = 2 times moe_intermediate_size = 24; num_shared_experts = 1",
        ),
        (LLADA2, {"head_dim": 8}, "head_dim"),
        (LLADA_MOE, {"expert_intermediate_size": 16}, "expert_intermediate_size = 16.*= 24 would fit"),
        (LLADA_MOE, {"shared_expert_intermediate_size": 16}, "missing: model.layers.0.shared_expert"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_config_that_contradicts_the_experts_is_refused_by_its_key(
    config: dict[str, Any], changes: dict[str, Any], message: str, catalogue: Catalogue, tmp_path: Path
) -> None:
    folder, _ = written(config, tmp_path)
    (folder / "config.json").write_text(json.dumps({**config, **changes}), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        load_model(folder, "cpu", catalogue=catalogue)
