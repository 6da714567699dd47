"""The small checkpoints of the model families, and what each needs to be told beside its config.json."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from esdllm import LoadPlan, ModelAdapter, ModelFamily
from esdllm_models import esdllm_model_adapters

FAMILIES = Path(__file__).parent / "conformance-families"


class Case(NamedTuple):
    """A folder, and the family that reads it."""

    folder: str
    family: str
    mask: int | None = 158

    def config(self, **changes: Any) -> dict[str, Any]:
        """Return its config.json with the mask token's id; None takes a key out."""
        found = json.loads((FAMILIES / self.folder / "config.json").read_text(encoding="utf-8"))
        found = {"mask_token_id": self.mask, **found, **changes}
        return {key: value for key, value in found.items() if value is not None or key not in changes}

    def made(self) -> ModelFamily:
        return esdllm_model_adapters()[self.family]()

    def load(self, folder: Path | None = None, plan: LoadPlan | None = None, **changes: Any) -> ModelAdapter:
        plan = plan or LoadPlan(torch.float32, torch.device("cpu"))
        return self.made().load(folder or FAMILIES / self.folder, self.config(**changes), plan)


CASES = (
    Case("a2d-qwen3-0", "a2d-qwen3-mdlm"),
    Case("a2d-qwen3-0", "a2d-qwen3-bd3lm"),
    Case("a2d-qwen2-0", "a2d-qwen2-mdlm"),
    Case("a2d-qwen2-0", "a2d-qwen2-bd3lm"),
    Case("a2d-llama-0", "a2d-llama-mdlm"),
    Case("a2d-llama-0", "a2d-llama-bd3lm"),
    Case("fast_dllm_v2-0", "fast-dllm-v2"),
    Case("illada-0", "illada", 5),
    Case("llada2_moe-0", "llada2_moe"),
    Case("llada_moe-0", "llada-moe"),
    Case("nemotron_labs_diffusion-0", "nemotron_labs_diffusion", None),
    Case("open_dcoder-0", "open-dcoder"),
    Case("rnd1-0", "rnd1"),
    Case("sdar-0", "sdar"),
    Case("sdar_moe-0", "sdar_moe"),
    Case("stable_diffcoder-0", "stable-diffcoder", 5),
)


@cache
def recorded(folder: str) -> dict[str, Tensor]:
    """Return what the public code gave."""
    return load_file(FAMILIES / folder / "logits.safetensors")


@cache
def weights(folder: str) -> dict[str, Tensor]:
    return load_file(FAMILIES / folder / "model.safetensors")
