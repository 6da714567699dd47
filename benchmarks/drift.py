"""How the drift controller behaves: its periods over a run, for several tolerances.

    python benchmarks/drift.py tiny-llada --out docs/assets/drift-tiny-llada.png

One prompt, one token per step, no early stop, the whole answer one block.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from torch import Tensor

from esdllm import Catalogue, Engine, ModelSpec, StepRecord, load_model
from esdllm.measure.plots import COLORS, new_figure, save_figure

TOLERANCES = (0.05, 0.1, 0.2, 0.4)
PROMPT = "Tell me what 34 + 9, 2 * 5 and 37 - 6 are."


class Periods:
    """Keeps the periods, and when something was refreshed."""

    def __init__(self) -> None:
        self.block: list[float] = []
        self.prompt: list[float] = []
        self.refreshed: list[int] = []

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Need nothing of the canvas."""

    def step(self, record: StepRecord) -> None:
        """Note the periods in force, and a refresh before this step."""
        block, prompt = record.moment.learned
        self.block.append(block)
        self.prompt.append(prompt)
        if record.moment.since_refresh == 1:
            self.refreshed.append(len(self.block) - 2)

    def end(self) -> None:
        """Have nothing to close."""


def main(
    model: Annotated[str, typer.Argument(help="Checkpoint folder or name.")],
    out: Annotated[Path, typer.Option(help="The picture to write.")],
    gen_length: Annotated[int, typer.Option(help="Tokens of the answer, and of the one block.")] = 112,
) -> None:
    """Draw the controller's periods."""
    catalogue, loaded = Catalogue.load(), load_model(model)
    figure = new_figure(9, 3.8)
    panels: Any = figure.subplots(1, 2, sharex=True)
    for number, tolerance in enumerate(TOLERANCES):
        settings = {
            "gen_length": gen_length,
            "block_length": gen_length,
            "early_stop": False,
            "refresh": {"name": "drift", "tolerance": tolerance},
        }
        engine, found = Engine.build(loaded, catalogue.configure("es-dllm", settings=settings), catalogue), Periods()
        engine.generate(PROMPT, chat=True, observers=[found])
        print(f"tolerance {tolerance}: {len(found.refreshed)} refreshes, at steps {found.refreshed}")
        for axes, periods in zip(panels, (found.block, found.prompt), strict=True):
            axes.step(range(len(periods)), periods, where="post", color=COLORS[number], label=f"tolerance {tolerance}")
        panels[0].plot(
            found.refreshed, [found.block[at] for at in found.refreshed], "o", color=COLORS[number], markersize=3
        )
    for axes, title in zip(panels, ("the block (dots: refreshes)", "what is left of it"), strict=True):
        axes.set(title=title, xlabel="step", yscale="log")
        axes.set_yticks([1, 2, 4, 8, 16, 32, 64, 128], [1, 2, 4, 8, 16, 32, 64, 128])
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("steps between two refreshes")
    panels[1].legend()
    save_figure(figure, out)


if __name__ == "__main__":
    typer.run(main)
