"""A run's first weights, taken from a checkpoint of another family that ships with the package."""

from __future__ import annotations

from pathlib import Path

import torch
import typer
from dialects import DIALECTS
from layouts import LAYOUTS
from model import TinyModel
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from vocabulary import token_id


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds an exported checkpoint, not a run."""
    return (folder / "model.safetensors").is_file()


def adopted_weights(folder: Path, model: TinyModel, tokenizer: Tokenizer, family: str) -> dict[str, Tensor]:
    """A state dict for `model` with the weights of LLaDA's checkpoint in `folder`, each word's row at the word's new id.

    What the checkpoint lacks (the norms of queries and keys) is the model's own, to be set by `fit_norms`.

    Raises:
        typer.BadParameter: the family is another than SDAR, whose model differs from LLaDA's in more than these norms.
    """
    if family != "sdar":
        raise typer.BadParameter(
            f"{family} cannot begin with a checkpoint of LLaDA's: only sdar can; give a run's folder"
        )
    layout, weights, state = LAYOUTS["llada"], load_file(folder / "model.safetensors"), model.state_dict()
    old = Tokenizer.from_file(str(folder / "tokenizer.json"))
    rows = torch.tensor([token_id(old, word) for word in _old_words(tokenizer, family)])
    for name in state:
        if name.split(".")[-2] not in ("q_norm", "k_norm"):
            whole = weights[layout.public(name)].float()
            state[name] = whole[rows] if name in ("embedding.weight", "head.weight") else whole
    return state


def _old_words(tokenizer: Tokenizer, family: str) -> list[str]:
    """What LLaDA's tokenizer calls each token, in the order of the ids; special tokens by what they are for."""
    new, old = DIALECTS[family], DIALECTS["llada"]
    pairs = ((new.end_of_text, old.end_of_text), (new.end_of_turn, old.end_of_turn), (new.mask, old.mask))
    names = dict((*pairs, (new.others[0], old.others[0])))
    words = [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]
    return [names.get(word, word) for word in words]


@torch.no_grad()
def fit_norms(model: TinyModel, ids: Tensor, unseen: Tensor) -> None:
    """Give the norms of queries and keys the sizes of what they norm, layer by layer, as measured on ids (B, L)."""

    def fit(norm: nn.RMSNorm, inputs: tuple[Tensor]) -> None:
        norm.weight.fill_(inputs[0].square().mean().sqrt())

    norms = [norm for block in model.blocks for norm in (block.q_norm, block.k_norm)]
    hooks = [norm.register_forward_pre_hook(fit) for norm in norms]
    model.features(ids, unseen=unseen)
    for hook in hooks:
        hook.remove()
