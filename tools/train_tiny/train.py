"""Trains a tiny model: `python tools/train_tiny/train.py llada --out DIR`.

Seeded and resumable: kill it at any time and start it again with `--resume`. The learning rate
falls linearly and reaches zero exactly when the budget of tokens is used up.
"""

from __future__ import annotations

import copy
import json
import os
import random
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from batches import Batch, draw_masks, loss_weights, make_chunk
from beginning import adopted_weights, fit_norms, is_checkpoint
from blocks import block_causal, draw_block_masks, draw_size, noised
from curve import draw_curve
from dialects import DIALECTS
from model import SIZES, Size, TinyModel, deeper_names
from optimizer import Muon
from problems import SHARES
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from vocabulary import build_tokenizer, token_id


@dataclass(frozen=True)
class Recipe:
    """The settings of a run; kept in its checkpoint."""

    family: str
    tokens: int
    batch_tokens: int = 4096
    matrix_rate: float = 0.01
    other_rate: float = 2.5e-3
    average: float = 0.998
    grow_at: float = 0.8
    """share of the budget that is trained with half of the layers"""
    seed: int = 0
    shares: dict[str, float] = field(default_factory=lambda: dict(SHARES))
    digits: bool = False
    """whether digits begin as waves of their value, where numbers are read digit by digit"""
    first: dict[str, Any] | None = None
    """what this run began with, at full depth: of another run's averaged weights its `recipe` and `place`, of a checkpoint's its
    `checkpoint`"""


@dataclass
class Place:
    """Where a run is: enough, with the weights, to go on as if nothing had happened."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    chunk: int = -1
    used: int = 0
    grown: float = 0.0
    """Progress when the chunk of data in use was made, which is what its problems' size depends on."""

    def progress(self, recipe: Recipe) -> float:
        """The fraction of the budget that is used up, at most 1."""
        return min(1.0, self.tokens / recipe.tokens)


class Trainer:
    """The state of a run: model, its running average, optimisers, place in the data.

    The model begins with half of its layers and is doubled when `grow_at` of the budget is used up.
    """

    def __init__(self, recipe: Recipe, size: Size, tokenizer: Tokenizer, fast: bool = True) -> None:
        self.recipe, self.place, self.tokenizer = recipe, Place(), tokenizer
        self.dialect = DIALECTS[recipe.family]
        self.mask_id: int = token_id(tokenizer, self.dialect.mask)
        torch.manual_seed(recipe.seed)
        self.model = TinyModel(size if recipe.first else size._replace(layers=size.layers // 2))
        numbers = [tokenizer.token_to_id(f"Ġ{number}") for number in range(100)]
        if None in numbers:  # Dream's tokenizer reads digits
            numbers = [tokenizer.token_to_id(str(digit)) for digit in range(10 if recipe.digits else 0)]
        if numbers and not recipe.first:
            self.model.number_values(numbers)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        self._layers, self._fast = size.layers, fast
        self._chunk: list[Batch] = []
        self._optimize()

    def begin_with(self, weights: dict[str, Tensor]) -> None:
        """Take over the weights of another run; where digits are read, they get waves of their value, once."""
        first = self.recipe.first or {}
        self.average.load_state_dict(weights)
        if "checkpoint" in first:  # of a family without norms of queries and keys
            batch = make_chunk(self.tokenizer, self.dialect, random.Random(0), 1.0, 4096, block_causal=True)[0]
            fit_norms(self.average, batch.ids, block_causal(batch.ids.shape[1], 16))
        begun = first.get("recipe", {})
        if self.recipe.family == "dream" and not begun.get("first") and not begun.get("digits"):
            digits = [self.tokenizer.token_to_id(str(digit)) for digit in range(10)]
            self.average.number_values(digits, spread=self.average.embedding.weight[digits].std().item(), keep=1.0)
        self.model.load_state_dict(self.average.state_dict())

    def _optimize(self) -> None:
        """Make the optimisers of the model as it is, and compile it."""
        recipe = self.recipe
        matrices = [p for p in self.model.blocks.parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        self.muon = Muon(matrices, recipe.matrix_rate)
        self.adam = torch.optim.AdamW(others, recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        if self._fast:
            torch._dynamo.config.recompile_limit = 64
            for block in self.model.blocks:
                block.compile(dynamic=False)

    def grow(self) -> None:
        """Double the layers; what was there keeps its weights, its average and its optimisers' state."""
        states = {
            deeper_names(name)[0]: state
            for name, weight in self.model.named_parameters()
            for state in (self.muon.state.get(weight), self.adam.state.get(weight))
            if state
        }
        self.model, self.average = self.model.deeper(), self.average.deeper().requires_grad_(False)
        self._optimize()
        for name, weight in self.model.named_parameters():
            if name in states:
                (self.muon if "exp_avg" not in states[name] else self.adam).state[weight] = states[name]

    def next_batch(self) -> Batch:
        """The batch at the run's place; a new chunk of data is made when one is used up."""
        if not self._chunk and self.place.chunk >= 0:
            self._make_chunk()
        if self.place.used >= len(self._chunk):
            self.place.grown = 1.0 if self.recipe.first else self.place.progress(self.recipe)
            self.place.chunk += 1
            self.place.used = 0
            self._make_chunk()
        batch = self._chunk[self.place.used]
        self.place.used += 1
        return batch

    def _make_chunk(self) -> None:
        recipe, place = self.recipe, self.place
        rng = random.Random(f"{recipe.seed}:{place.chunk}")
        told = (self.tokenizer, self.dialect, rng, place.grown, recipe.batch_tokens, recipe.shares)
        self._chunk = make_chunk(*told, block_causal=self.model.size.block_causal)

    def step(self) -> float:
        """One update of the weights; returns the loss before it."""
        began = time.monotonic()
        if self.model.size.layers < self._layers and self.place.progress(self.recipe) >= self.recipe.grow_at:
            self.grow()
        batch = self.next_batch()
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.place.step)
        masked, logits = self._masked_logits(batch, generator)
        errors = functional.cross_entropy(logits.float(), batch.ids[masked], reduction="none")
        weights = loss_weights(batch)[masked]
        loss = (errors * weights).sum() / weights.sum()
        torch.autograd.backward(loss)
        self._update(min(1.0, (self.place.step + 1) / 100))
        self.place.step += 1
        self.place.tokens += batch.ids.numel()
        self.place.seconds += time.monotonic() - began
        return float(loss.detach())

    def _masked_logits(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What is masked of a batch, (B, L) bool, and the M masked positions' logits, (M, V)."""
        vocab_size = self.model.size.vocab_size
        with torch.autocast("cpu", torch.bfloat16):
            if not self.model.size.block_causal:
                masked = draw_masks(batch, vocab_size, generator)
                return masked, self.model.logits_at(batch.ids.masked_fill(masked, self.mask_id), masked)
            size = draw_size(batch.ids.shape[1], generator)
            masked = draw_block_masks(batch, size, vocab_size, generator)
            return masked, self.model.logits_at(*noised(batch, masked, size, self.mask_id))

    def _update(self, warm: float) -> None:
        decay = warm * (1 - self.place.progress(self.recipe))
        for group in self.muon.param_groups:
            group["lr"] = self.recipe.matrix_rate * decay
        for group in self.adam.param_groups:
            group["lr"] = self.recipe.other_rate * decay
        for optimizer in (self.muon, self.adam):
            optimizer.step()
            optimizer.zero_grad()
        keep = min(self.recipe.average, (1 + self.place.step) / (10 + self.place.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - keep)

    def save(self, path: Path) -> None:
        """Writes the whole state; the old file is replaced only by a complete new one."""
        state = {
            "family": self.recipe.family,
            "recipe": asdict(self.recipe),
            "size": self.model.size._asdict(),
            "place": asdict(self.place),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "tokenizer": self.tokenizer.to_str(),
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, path)

    def load(self, path: Path) -> None:
        """Goes back to where `save` left a run; the recipe in use stays this trainer's."""
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.place = Place(**state["place"])
        if state["size"]["layers"] > self.model.size.layers:
            self.grow()
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])


def train(trainer: Trainer, out: Path, save_every: float = 120.0, stop_after: int | None = None) -> None:
    """Runs until the budget is used up (or `stop_after` steps); saves, logs, draws the curve."""
    out.mkdir(parents=True, exist_ok=True)
    saved, losses = time.monotonic(), list[float]()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns) as bar, (out / "log.jsonl").open("a") as log:
        task = bar.add_task("training", total=1.0)
        while trainer.place.progress(trainer.recipe) < 1 and trainer.place.step != stop_after:
            losses.append(trainer.step())
            place = trainer.place
            if place.step % 20 == 0:
                loss, losses = sum(losses) / len(losses), []
                log.write(json.dumps({"loss": round(loss, 5), **asdict(place)}) + "\n")
                log.flush()
                said = f"{place.tokens / 1e6:.1f}M tokens, loss {loss:.4f}"
                bar.update(task, completed=place.progress(trainer.recipe), description=said)
            if time.monotonic() - saved > save_every:
                trainer.save(out / "checkpoint.pt")
                saved = time.monotonic()
    trainer.save(out / "checkpoint.pt")
    parameters = sum(weight.numel() for weight in trainer.model.state_dict().values())
    draw_curve(out / "log.jsonl", out / "loss.png", trainer.recipe.family, parameters)


def main(
    family: Annotated[str, typer.Argument(help="llada, dream or sdar.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, the log and the curve.")],
    tokens: Annotated[int, typer.Option(help="Budget of training tokens.")] = 45_000_000,
    resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint, by its own recipe.")] = False,
    share: Annotated[list[str] | None, typer.Option(help="A task's share: `lists=0.3`.")] = None,
    digits: Annotated[bool, typer.Option("--digits", help="Begin the digits as waves of their value (Dream).")] = False,
    start: Annotated[
        Path | None,
        typer.Option(help="Begin with the weights of this run's folder, or of this LLaDA checkpoint's (sdar)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the data.")] = 0,
    batch_tokens: Annotated[int, typer.Option(help="Tokens in a batch.")] = 4096,
    matrix_rate: Annotated[float, typer.Option(help="Muon's first learning rate.")] = 0.01,
    other_rate: Annotated[float, typer.Option(help="AdamW's first learning rate.")] = 2.5e-3,
    tied: Annotated[bool, typer.Option(help="Train embedding and head as one table.")] = True,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Train a tiny model of a family on a budget of tokens."""
    if family not in SIZES:
        raise typer.BadParameter(f"no family {family!r}: {' or '.join(SIZES)}")
    if not resume and (out / "checkpoint.pt").exists():
        raise typer.BadParameter(f"{out} holds a run already: go on with --resume, or name another folder")
    torch.set_num_threads(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    shares = SHARES | {name: float(x) for name, x in (one.split("=") for one in share or [])}
    begun = torch.load(start / "checkpoint.pt", weights_only=True) if start and not is_checkpoint(start) else None
    first = {key: begun[key] for key in ("recipe", "place")} if begun else {"checkpoint": start.name} if start else None
    recipe = Recipe(
        family, tokens, batch_tokens, matrix_rate, other_rate, seed=seed, shares=shares, digits=digits, first=first
    )
    tokenizer = build_tokenizer(family)
    size = SIZES[family]._replace(vocab_size=tokenizer.get_vocab_size(), tied=tied)
    if resume:
        state = torch.load(out / "checkpoint.pt", weights_only=True)
        if state["family"] != family:
            raise typer.BadParameter(f"{out} holds a run of {state['family']}, not of {family}")
        recipe, tokenizer = Recipe(**state["recipe"]), Tokenizer.from_str(state["tokenizer"])
        size = Size(**state["size"])._replace(layers=size.layers)
    trainer = Trainer(recipe, size, tokenizer)
    if resume:
        trainer.load(out / "checkpoint.pt")
    elif start:
        trainer.begin_with(begun["average"] if begun else adopted_weights(start, trainer.model, tokenizer, family))
    train(trainer, out)


if __name__ == "__main__":
    typer.run(main)
