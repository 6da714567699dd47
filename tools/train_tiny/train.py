"""Trains the tiny model: `python tools/train_tiny/train.py --out DIR --minutes 85`.

Seeded and resumable: kill it at any time and start it again with `--resume`. The learning rate
falls linearly and reaches zero exactly when the budget, in minutes or in tokens, is used up.
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
from model import Size, TinyLLaDA
from optimizer import Muon
from problems import SHARES
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import Tokenizer
from torch.nn import functional
from vocabulary import MASK, build_tokenizer, token_id


@dataclass(frozen=True)
class Recipe:
    """The settings of a run; kept in its checkpoint."""

    minutes: float | None = None
    tokens: int | None = None
    batch_tokens: int = 4096
    matrix_rate: float = 0.01
    other_rate: float = 1.5e-3
    average: float = 0.998
    seed: int = 0
    shares: dict[str, float] = field(default_factory=lambda: dict(SHARES))


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
        used = [0.0]
        if recipe.minutes is not None:
            used.append(self.seconds / (60 * recipe.minutes))
        if recipe.tokens is not None:
            used.append(self.tokens / recipe.tokens)
        return min(1.0, max(used))


class Trainer:
    """The state of a run: model, its running average, optimisers, place in the data."""

    def __init__(self, recipe: Recipe, size: Size, tokenizer: Tokenizer, fast: bool = True) -> None:
        self.recipe, self.place, self.tokenizer = recipe, Place(), tokenizer
        self.mask_id: int = token_id(tokenizer, MASK)
        torch.manual_seed(recipe.seed)
        self.model = TinyLLaDA(size)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        matrices = [p for p in self.model.blocks.parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for p in self.model.parameters() if id(p) not in chosen]
        self.muon = Muon(matrices, recipe.matrix_rate)
        self.adam = torch.optim.AdamW(others, recipe.other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
        self._chunk: list[Batch] = []
        if fast:
            torch._dynamo.config.recompile_limit = 64
            for block in self.model.blocks:
                block.compile(dynamic=False)

    def next_batch(self) -> Batch:
        """The batch at the run's place; a new chunk of data is made when one is used up."""
        if not self._chunk and self.place.chunk >= 0:
            self._make_chunk()
        if self.place.used >= len(self._chunk):
            self.place.grown = self.place.progress(self.recipe)
            self.place.chunk += 1
            self.place.used = 0
            self._make_chunk()
        batch = self._chunk[self.place.used]
        self.place.used += 1
        return batch

    def _make_chunk(self) -> None:
        recipe, place = self.recipe, self.place
        rng = random.Random(f"{recipe.seed}:{place.chunk}")
        self._chunk = make_chunk(self.tokenizer, rng, place.grown, recipe.batch_tokens, recipe.shares)

    def step(self) -> float:
        """One update of the weights; returns the loss before it."""
        began = time.monotonic()
        batch = self.next_batch()
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + self.place.step)
        masked = draw_masks(batch, self.model.size.vocab_size, generator)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.model.features(batch.ids.masked_fill(masked, self.mask_id))[masked]
            logits = self.model.ff_out(hidden)
        errors = functional.cross_entropy(logits.float(), batch.ids[masked], reduction="none")
        weights = loss_weights(batch)[masked]
        loss = (errors * weights).sum() / weights.sum()
        torch.autograd.backward(loss)
        self._update(min(1.0, (self.place.step + 1) / 100))
        self.place.step += 1
        self.place.tokens += batch.ids.numel()
        self.place.seconds += time.monotonic() - began
        return float(loss.detach())

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
    draw_curve(out / "log.jsonl", out / "loss.png")


def draw_curve(log: Path, picture: Path) -> None:
    """The loss of a run over its tokens, as a PNG with a logarithmic loss axis."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in log.read_text().splitlines()]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([row["tokens"] / 1e6 for row in rows], [row["loss"] for row in rows], linewidth=0.8)
    axes.set(yscale="log", xlabel="tokens (millions)", ylabel="loss on masked tokens")
    axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=120)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint, the log and the curve.")],
    minutes: Annotated[float | None, typer.Option(help="Budget of training time.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Budget of training tokens.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the folder's checkpoint.")] = False,
    share: Annotated[list[str] | None, typer.Option(help="A task's share: `lists=0.3`.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights and of the data.")] = 0,
    d_model: Annotated[int, typer.Option(help="Hidden size.")] = 160,
    heads: Annotated[int, typer.Option(help="Attention heads.")] = 5,
    mlp: Annotated[int, typer.Option(help="Hidden size of the MLP.")] = 448,
    layers: Annotated[int, typer.Option(help="Layers.")] = 8,
    batch_tokens: Annotated[int, typer.Option(help="Tokens in a batch.")] = 4096,
    matrix_rate: Annotated[float, typer.Option(help="Muon's first learning rate.")] = 0.01,
    other_rate: Annotated[float, typer.Option(help="AdamW's first learning rate.")] = 1.5e-3,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Train the tiny model on a budget of minutes, of tokens, or of whichever ends first."""
    if minutes is None and tokens is None:
        raise typer.BadParameter("give a budget: --minutes, --tokens or both")
    torch.set_num_threads(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    shares = SHARES | {name: float(x) for name, x in (one.split("=") for one in share or [])}
    recipe = Recipe(minutes, tokens, batch_tokens, matrix_rate, other_rate, seed=seed, shares=shares)
    tokenizer = build_tokenizer()
    if resume:
        kept = torch.load(out / "checkpoint.pt", weights_only=True)["tokenizer"]
        tokenizer = Tokenizer.from_str(kept)
    size = Size(tokenizer.get_vocab_size(), d_model, layers, heads, mlp)
    trainer = Trainer(recipe, size, tokenizer)
    if resume:
        trainer.load(out / "checkpoint.pt")
    train(trainer, out)


if __name__ == "__main__":
    typer.run(main)
