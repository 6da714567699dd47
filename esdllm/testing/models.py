"""Tiny models with random weights, in the geometries of the two published families: no download, milliseconds per step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from esdllm.checkpoints.loading import Model, random_model
from esdllm.errors import InputError, known
from esdllm.plugins.catalogue import Catalogue

__all__ = ["GEOMETRIES", "tiny_model"]

GEOMETRIES: Mapping[str, Mapping[str, Any]] = {
    "llada": {
        "model_type": "llada",
        "torch_dtype": "float32",
        "d_model": 32,
        "n_layers": 4,
        "n_heads": 4,
        "n_kv_heads": 4,
        "mlp_hidden_size": 48,
        "vocab_size": 64,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "max_sequence_length": 2048,
        "mask_token_id": 63,
        "eos_token_id": 62,
    },
    "Dream": {
        "model_type": "Dream",
        "torch_dtype": "float32",
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "vocab_size": 64,
        "rope_theta": 1000000.0,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
        "mask_token_id": 63,
        "eos_token_id": 62,
    },
}
"""A config.json for each family: 4 layers, 32 features, 64 tokens. Dream's has grouped queries and a logit shift of 1."""


def tiny_model(
    family: str = "llada",
    device: str | torch.device = "cpu",
    catalogue: Catalogue | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Model:
    """Return a tiny model of a family with random weights; the same for the same seed. `family` is "llada" or "Dream".

    On the device "meta" it has shapes and no numbers, and any read of one raises.

    Raises:
        InputError: there is no tiny geometry of that family.
    """
    if family not in GEOMETRIES:
        raise InputError(f"no tiny model of the family '{family}'; {known(family, GEOMETRIES)}")
    return random_model(GEOMETRIES[family], device, dtype, catalogue, seed=seed)
