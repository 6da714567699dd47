"""Writes a run's averaged weights as its family's public checkpoint: `export.py --run DIR --to DIR`.

`config.json`, `model.safetensors` in bfloat16, the tokenizer's files, the model card and the loss curve.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from card import Scores, card, read_scores
from curve import draw_curve
from dialects import DIALECTS
from layouts import LAYOUTS, MAX_LENGTH
from model import Size, TinyModel
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from vocabulary import save_tokenizer, token_id


def load_average(run: Path) -> tuple[TinyModel, Tokenizer, dict[str, Any]]:
    """The averaged model of a run's checkpoint, its tokenizer, and the checkpoint itself."""
    path = run / "checkpoint.pt"
    if not path.is_file():
        raise typer.BadParameter(f"{run} holds no checkpoint.pt: give the folder that train.py wrote with --out")
    state: dict[str, Any] = torch.load(path, weights_only=True)
    model = TinyModel(Size(**state["size"]))
    model.load_state_dict(state["average"])
    return model.requires_grad_(False), Tokenizer.from_str(state["tokenizer"]), state


def public_config(family: str, size: Size, tokenizer: Tokenizer) -> dict[str, Any]:
    """`config.json` with the keys of the family's public checkpoints."""
    layout, dialect = LAYOUTS[family], DIALECTS[family]
    return {
        **layout.settled,
        **{key: getattr(size, field) for key, field in layout.sizes.items()},
        **{key: token_id(tokenizer, getattr(dialect, field)) for key, field in layout.tokens.items()},
    }


def public_weights(family: str, model: TinyModel) -> dict[str, Tensor]:
    """The state dict under the family's public names, in bfloat16."""
    weights = model.state_dict().items()
    return {LAYOUTS[family].public(name): weight.to(torch.bfloat16).contiguous() for name, weight in weights}


def export(run: Path, to: Path, scores: Scores | None = None) -> None:
    """Writes the checkpoint's files beside their place and moves them in: a reader never sees half of one."""
    model, tokenizer, state = load_average(run)
    family, parameters = state["family"], sum(weight.numel() for weight in model.state_dict().values())
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        made = Path(folder)
        save_tokenizer(tokenizer, family, made, MAX_LENGTH)
        config = json.dumps(public_config(family, model.size, tokenizer), indent=2) + "\n"
        (made / "config.json").write_text(config, encoding="utf-8")
        save_file(public_weights(family, model), made / "model.safetensors", metadata={"format": "pt"})
        draw_curve(run / "log.jsonl", made / "loss.png", family, parameters)
        (made / "README.md").write_text(card(state, parameters, run / "log.jsonl", scores), encoding="utf-8")
        for path in made.iterdir():
            path.chmod(0o644)
            path.replace(to / path.name)


def main(
    run: Annotated[Path, typer.Option(help="Folder of the run, with its `checkpoint.pt` and `log.jsonl`.")],
    to: Annotated[Path, typer.Option(help="Folder of the checkpoint to write.")],
    scores: Annotated[Path | None, typer.Option(help="For the card: what `esdllm eval --json` printed.")] = None,
) -> None:
    """Export the averaged weights of a run as a checkpoint of its family, with its card and its curve."""
    export(run, to, read_scores(scores) if scores else None)


if __name__ == "__main__":
    typer.run(main)
