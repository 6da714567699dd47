"""Writes a run's averaged weights as a public LLaDA checkpoint: `export.py --run DIR --to DIR`.

`config.json`, `model.safetensors` in bfloat16, the tokenizer's files and the model card.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from model import Size, TinyLLaDA
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from vocabulary import END_OF_TEXT, MASK, save_tokenizer, token_id

MAX_LENGTH = 1024


def load_average(run: Path) -> tuple[TinyLLaDA, Tokenizer, dict[str, Any]]:
    """The averaged model of a run's checkpoint, its tokenizer, and the checkpoint itself."""
    state: dict[str, Any] = torch.load(run / "checkpoint.pt", weights_only=True)
    model = TinyLLaDA(Size(**state["size"]))
    model.load_state_dict(state["average"])
    return model.requires_grad_(False), Tokenizer.from_str(state["tokenizer"]), state


def public_config(size: Size, tokenizer: Tokenizer) -> dict[str, Any]:
    """`config.json` with the keys of the public LLaDA checkpoints."""
    end = token_id(tokenizer, END_OF_TEXT)
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": size.d_model,
        "n_layers": size.n_layers,
        "n_heads": size.n_heads,
        "n_kv_heads": size.n_heads,
        "mlp_hidden_size": size.mlp_hidden_size,
        "vocab_size": size.vocab_size,
        "embedding_size": size.vocab_size,
        "mask_token_id": token_id(tokenizer, MASK),
        "eos_token_id": end,
        "pad_token_id": end,
        "max_sequence_length": MAX_LENGTH,
        "rms_norm_eps": size.rms_norm_eps,
        "rope": True,
        "rope_full_precision": True,
        "rope_theta": size.rope_theta,
        "layer_norm_type": "rms",
        "activation_type": "silu",
        "block_type": "llama",
        "include_bias": False,
        "include_qkv_bias": False,
        "input_emb_norm": False,
        "weight_tying": False,
        "scale_logits": False,
        "alibi": False,
        "torch_dtype": "bfloat16",
    }


def public_weights(model: TinyLLaDA) -> dict[str, Tensor]:
    """The state dict under the public names, in bfloat16."""
    return {
        f"model.transformer.{name}": weight.to(torch.bfloat16).contiguous()
        for name, weight in model.state_dict().items()
    }


def export(run: Path, to: Path) -> None:
    """Writes the checkpoint's files; a reader never sees a half-written one."""
    model, tokenizer, _ = load_average(run)
    to.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, to, MAX_LENGTH)
    config = json.dumps(public_config(model.size, tokenizer), indent=2) + "\n"
    (to / "config.json").write_text(config, encoding="utf-8")
    part = to / "model.safetensors.part"
    save_file(public_weights(model), part, metadata={"format": "pt"})
    part.chmod(0o644)
    part.replace(to / "model.safetensors")


def main(
    run: Annotated[Path, typer.Option(help="Folder of the run, with its `checkpoint.pt`.")],
    to: Annotated[Path, typer.Option(help="Folder of the checkpoint to write.")],
) -> None:
    """Export the averaged weights of a run as a LLaDA checkpoint."""
    export(run, to)


if __name__ == "__main__":
    typer.run(main)
