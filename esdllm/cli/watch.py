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
from esdllm.use.frames import Frame, Frames
from esdllm.views import ModelSpec, StepRecord

_BARS = "▁▂▃▄▅▆▇█"
_NEW, _OLD, _NEXT, _LATER, _END = "bold black on green", "default", "cyan", "bright_black", "bright_black"
_DRAFT, _SKIPPED = "italic cyan", "italic bright_black"
_WIDEST = 100


class View:
    """A step observer on a terminal, as a context: the terminal is put right however the run ends."""

    def __init__(self, most: int | None = None) -> None:
        self.seconds = 0.0
        """time spent on showing, which is no time of the decoding"""
        self.forwards = 0
        self.frame: Frame | None = None
        """the last picture of the answer, of `most` columns; None before the run"""
        self._frames = Frames(most)

    def __enter__(self) -> View:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Take the canvas before the first step."""
        self.frame = self._frames.start(tokens, spec)
        self.open(tokens, spec)

    def step(self, record: StepRecord) -> None:
        """Show one step."""
        started = time.perf_counter()
        self.forwards += 1
        self.frame = self._frames.step(record)
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

    def __init__(self, console: Console, most: int | None = None) -> None:
        super().__init__(most)
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
    """The answer's canvas while it is denoised; see `CanvasPanel`.

    Shows a step for `pace` seconds at least, so that the eye can follow.
    """

    def __init__(
        self, console: Console, codec: TextCodec, title: str, pace: float = 0.06, most: int | None = None
    ) -> None:
        super().__init__(most)
        self._panel, self._pace = CanvasPanel(codec, title, console.width), pace
        self._live = Live(console=console, transient=True, auto_refresh=False)

    def open(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Find the answer's first column and draw the canvas."""
        self._live.start()
        self._draw()

    def show(self, record: StepRecord) -> None:
        """Draw the canvas and wait until the eye has seen it."""
        started = time.perf_counter()
        self._draw()
        time.sleep(max(0.0, self._pace - (time.perf_counter() - started)))

    def close(self) -> None:
        """Take the canvas away."""
        self._live.stop()

    def _draw(self) -> None:
        if self.frame is not None:
            self._live.update(self._panel.draw(self.frame), refresh=True)


class CanvasPanel:
    """Draws an answer's canvas.

    Decided tokens are plain, those decided just now on green; candidates are in italics, grey if the step skipped them;
    masks without a candidate are dots; squares end the text, hollow ones perhaps. Below stands each layer's work.
    """

    def __init__(self, codec: TextCodec, title: str, width: int) -> None:
        self._codec, self._title, self._width = codec, title, min(width, _WIDEST)

    def draw(self, frame: Frame) -> Panel:
        """Return a frame's picture."""
        body: RenderableType = Group(self.canvas(frame), Text(), self._status(frame))
        return Panel(body, title=self._title, title_align="left", width=self._width, border_style="bright_black")

    def canvas(self, frame: Frame) -> Text:
        """Return the answer; neighbours of one look are decoded together, so that characters of many tokens come out."""
        looks = [self._look(frame, i) for i in range(len(frame.tokens))]
        text = Text(overflow="fold")
        for look, run in groupby(zip(looks, frame.standing, strict=True), key=lambda pair: pair[0]):
            text.append(self._text(look[0], [token for _, token in run]), style=look[1])
        return text

    def _look(self, frame: Frame, i: int) -> tuple[str, str]:
        """Return what a position is drawn as, and its style."""
        token, decided = frame.standing[i], frame.tokens[i] != frame.mask
        if token < 0:
            return "mask", _NEXT if i in frame.block else _LATER
        kind = "text" if token not in self._codec.stop_ids else "end" if decided else "perhaps end"
        if decided:
            return kind, _NEW if frame.committed[i] else _END if kind == "end" else _OLD
        skipped = i not in frame.block or (frame.computed is not None and not frame.computed[i])
        return kind, _SKIPPED if skipped else _DRAFT

    def _text(self, kind: str, tokens: Sequence[int]) -> str:
        if kind == "text":
            return self._codec.decode(tokens)
        return {"mask": "· ", "end": "∎ ", "perhaps end": "□ "}[kind] * len(tokens)

    def _status(self, frame: Frame) -> Text:
        if frame.plan is None:
            return Text("forward 0\n")
        work = frame.plan.layer_work() / (frame.length * len(frame.plan.keep))
        where = f"forward {frame.forwards} · block {frame.number + 1}"
        return Text.assemble(
            f"{where} · {frame.decided} of {len(frame.tokens)} decided\n",
            ("layers ", "bright_black"),
            (layer_bars(frame.plan, frame.length), "cyan" if frame.plan.skips else "yellow"),
            (f" {work:.0%} of the positions that vanilla decoding computes", "bright_black"),
        )


def layer_bars(plan: StepPlan, length: int) -> str:
    """Return one bar a layer, at most 32: the positions that it computes, as a share of the canvas."""
    stride = -(-len(plan.keep) // 32)
    return "".join(_BARS[min(7, (8 * count - 1) // length)] for count in plan.computed[::stride])
