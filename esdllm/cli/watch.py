"""What is shown while a canvas is denoised: a progress bar, or the canvas itself. Both are step observers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import groupby
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text
from torch import Tensor

from esdllm.interfaces import TextCodec
from esdllm.plan import StepPlan
from esdllm.views import ModelSpec, StepRecord

_BARS = "▁▂▃▄▅▆▇█"
_NEW, _OLD, _NEXT, _LATER, _END = "bold black on green", "default", "cyan", "bright_black", "bright_black"
_WIDEST = 100


class View:
    """A step observer on a terminal, as a context: the terminal is put right however the run ends."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """time spent on showing, which is no time of the decoding"""
        self.forwards = 0

    def __enter__(self) -> View:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Take the canvas before the first step."""
        self.open(tokens, spec)

    def step(self, record: StepRecord) -> None:
        """Show one step."""
        started = time.perf_counter()
        self.forwards += 1
        self.show(record)
        self.seconds += time.perf_counter() - started

    def end(self) -> None:
        """The context's end closes the view."""

    def open(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Begin to show."""
        raise NotImplementedError

    def show(self, record: StepRecord) -> None:
        """Show one step."""
        raise NotImplementedError

    def close(self) -> None:
        """Leave the terminal as it was."""
        raise NotImplementedError


class ProgressBar(View):
    """The share of the masks that are decided."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        columns = ("denoising", BarColumn(), TaskProgressColumn(), TextColumn("forward {task.fields[forwards]}"))
        self._bar = Progress(*columns, console=console, transient=True)

    def open(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Count the masks."""
        self._task = self._bar.add_task("", total=int((tokens == spec.mask_id).sum()), forwards=0)
        self._bar.start()

    def show(self, record: StepRecord) -> None:
        """Add the tokens that the step committed."""
        self._bar.update(self._task, advance=int(record.committed.sum()), forwards=self.forwards)

    def close(self) -> None:
        """Take the bar away."""
        self._bar.stop()


class Watch(View):
    """The answer's canvas: tokens, those committed just now highlighted, masks as dots; and each layer's work.

    Shows a step for `pace` seconds at least, so that the eye can follow.
    """

    def __init__(self, console: Console, codec: TextCodec, title: str, pace: float = 0.06) -> None:
        super().__init__()
        self._codec, self._title, self._pace = codec, title, pace
        self._width = min(console.width, _WIDEST)
        self._live = Live(console=console, transient=True, auto_refresh=False)

    def open(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Find the answer's first column and draw the canvas."""
        self._spec = spec
        self._first = int((tokens[0] == spec.mask_id).long().argmax())
        masks = tokens[0, self._first :].tolist()
        self._total = len(masks)
        self._live.start()
        self._draw(self._canvas(masks, [False] * len(masks), range(0)), Text("forward 0\n"))

    def show(self, record: StepRecord) -> None:
        """Draw the canvas and wait until the eye has seen it."""
        started = time.perf_counter()
        tokens, new = record.tokens[0, self._first :].tolist(), record.committed[0, self._first :].tolist()
        shift = self._spec.logit_shift - self._first
        block = range(record.block.start + shift, record.block.stop + shift)
        decided = sum(token != self._spec.mask_id for token in tokens)
        self._draw(self._canvas(tokens, new, block), self._status(record, decided))
        time.sleep(max(0.0, self._pace - (time.perf_counter() - started)))

    def close(self) -> None:
        """Take the canvas away."""
        self._live.stop()

    def _draw(self, canvas: Text, status: Text) -> None:
        body: RenderableType = Group(canvas, Text(), status)
        panel = Panel(body, title=self._title, title_align="left", width=self._width, border_style="bright_black")
        self._live.update(panel, refresh=True)

    def _canvas(self, tokens: Sequence[int], new: Sequence[bool], block: range) -> Text:
        """Return the answer; neighbours of one look are decoded together, so that characters of many tokens come out."""
        looks = [self._look(token, new[i], i in block) for i, token in enumerate(tokens)]
        text = Text(overflow="fold")
        for look, run in groupby(zip(looks, tokens, strict=True), key=lambda pair: pair[0]):
            text.append(self._text([token for _, token in run]), style=look[1])
        return text

    def _look(self, token: int, new: bool, in_block: bool) -> tuple[str, str]:
        """Return what a token is drawn as, and its style."""
        if token == self._spec.mask_id:
            return "mask", _NEXT if in_block else _LATER
        kind = "end" if token in self._codec.stop_ids else "text"
        return kind, _NEW if new else _END if kind == "end" else _OLD

    def _text(self, tokens: Sequence[int]) -> str:
        if tokens[0] == self._spec.mask_id:
            return "· " * len(tokens)
        return "∎ " * len(tokens) if tokens[0] in self._codec.stop_ids else self._codec.decode(tokens)

    def _status(self, record: StepRecord, decided: int) -> Text:
        length = record.tokens.shape[1]
        work = record.plan.layer_work() / (length * self._spec.n_layers)
        return Text.assemble(
            f"forward {self.forwards} · block {record.moment.block + 1} · {decided} of {self._total} decided\n",
            ("layers ", "bright_black"),
            (layer_bars(record.plan, length), "cyan" if record.plan.skips else "yellow"),
            (f" {work:.0%} of the positions that vanilla decoding computes", "bright_black"),
        )


def layer_bars(plan: StepPlan, length: int) -> str:
    """Return one bar a layer, at most 32: the positions that it computes, as a share of the canvas."""
    stride = -(-len(plan.keep) // 32)
    return "".join(_BARS[min(7, (8 * count - 1) // length)] for count in plan.computed[::stride])
