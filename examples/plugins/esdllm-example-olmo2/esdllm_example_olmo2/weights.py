"""Where a model's weights come from: a folder's safetensors, a loaded module, or chance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esdllm import CheckpointError, LoadPlan, UnavailableError
from esdllm.checkpoints.weights import Checkpoint, compare

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of every weight, by its name in a checkpoint."""

HEAD = "lm_head.weight"
"""May be there although the embedding is the head; transformers leaves it out then too."""


def read(folder: Path, shapes: Shapes, plan: LoadPlan) -> dict[str, Tensor]:
    """Return the weights in a folder's safetensors, in the plan's dtype on its device."""
    checkpoint = Checkpoint(folder, shapes, ignored=[HEAD])
    weights = {name: torch.empty(shape, dtype=plan.dtype, device=plan.device) for name, shape in shapes.items()}
    for name, slot in weights.items():
        checkpoint.read(name, slot)
    return weights


def adopted(module: Any, shapes: Shapes) -> dict[str, Tensor]:
    """Return a loaded module's own weights, none copied.

    Raises:
        CheckpointError: it has other weights than `shapes` says, as one has that is quantised or has a LoRA in it.
        UnavailableError: they lie on several devices, or hold no values.
    """
    found = module.state_dict()
    compare(f"the {type(module).__name__}", found, shapes, ignored=[HEAD])
    for name, shape in shapes.items():
        if found[name].shape != shape:
            raise CheckpointError(f"'{name}' has the shape {tuple(found[name].shape)}, but the config says {shape}")
    kinds = {(found[name].device, found[name].dtype) for name in shapes}
    if len(kinds) > 1 or next(iter(kinds))[0].type == "meta":
        said = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
        raise UnavailableError(f"the module's weights are {said}; one dtype on one device with values is needed")
    return {name: found[name] for name in shapes}


def drawn(shapes: Shapes, seed: int, plan: LoadPlan) -> dict[str, Tensor]:
    """Return random weights that keep the hidden states of one size: norms 1, the others normal around 0."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * shape[-1] ** -0.5
        ).to(plan.device, plan.dtype)
        for name, shape in shapes.items()
    }
