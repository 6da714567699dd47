"""What several test files use: plugins made on the spot, checkpoints written to folders."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from esdllm import hookimpl

CASES = Path(__file__).parent / "conformance"
MASK, EOS = 254, 253
"""special ids of every 256-token checkpoint here"""


def plugin(**hooks: Callable[[], object]) -> ModuleType:
    """Return a plugin module that implements hooks."""
    module = ModuleType("made_up")
    for name, implementation in hooks.items():
        setattr(module, name, hookimpl(implementation))
    return module


def offers(hook: str, offered: object) -> ModuleType:
    """Return a plugin module whose only hook returns `offered`."""
    return plugin(**{hook: lambda: offered})


def read_config(name: str) -> dict[str, Any]:
    """Return the config.json of a conformance checkpoint."""
    found: dict[str, Any] = json.loads((CASES / name / "config.json").read_text(encoding="utf-8"))
    return found


def write_checkpoint(folder: Path, config: object, weights: Mapping[str, Tensor], shards: int = 1) -> Path:
    """Write a checkpoint folder, in one file, or in shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if shards == 1:
        save_file(dict(weights), folder / "model.safetensors")
        return folder
    index: dict[str, str] = {}
    names = sorted(weights)
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        save_file({name: weights[name] for name in names[shard::shards]}, folder / file)
        index.update(dict.fromkeys(names[shard::shards], file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    return folder


def zeros(config: dict[str, Any]) -> dict[str, Tensor]:
    """Return a LLaDA checkpoint's weights, all zero."""
    d, mlp, vocab = config["d_model"], config["mlp_hidden_size"], config["vocab_size"]
    square = dict.fromkeys(("q_proj", "k_proj", "v_proj", "attn_out"), (d, d))
    layer = {**square, "attn_norm": (d,), "ff_norm": (d,), "ff_proj": (mlp, d), "up_proj": (mlp, d), "ff_out": (d, mlp)}
    shapes: dict[str, tuple[int, ...]] = {"wte": (vocab, d), "ff_out": (vocab, d), "ln_f": (d,)}
    for number in range(config["n_layers"]):
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in layer.items()}
    return {f"model.transformer.{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}


def write_small(folder: Path, whole: Path, layers: int = 2) -> Path:
    """Write a checkpoint again with its first layers only, random weights, and its tokenizer if any; return the folder.

    What it says is nonsense, and differs from prompt to prompt.
    """
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.md", "*.png"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {name: layers for name in ("n_layers", "num_hidden_layers", "max_window_layers") if name in config}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    random, kept = torch.Generator().manual_seed(0), {}
    for name, weight in sorted(load_file(whole / "model.safetensors").items()):
        if (layer := re.search(r"\.(\d+)\.", name)) and int(layer[1]) >= layers:
            continue
        drawn = torch.randn(weight.shape, generator=random)
        kept[name] = (1 + 0.1 * drawn if "norm" in name or "ln_f" in name else 0.15 * drawn).to(weight.dtype)
    save_file(kept, folder / "model.safetensors")
    return folder
