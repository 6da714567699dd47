"""What planners speak of: windows, moments, plans. Host integers only; imports no torch.

All positions here are *computed* positions: columns of the canvas whose hidden state the model computes.
The token that position p decides stands at p + s, where s is the model's logit shift.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from esdllm.block_causal import BlockCausal

__all__ = ["Block", "BlockCausal", "Drift", "Facts", "Layout", "Moment", "Phase", "Scope", "Step", "StepPlan", "Window"]


class Window(Enum):
    """Which positions a denoising step computes, before any of them is skipped."""

    CANVAS = "canvas"
    """every position"""
    PREFIX = "prefix"
    """from the canvas' start to the block's end"""
    SUFFIX = "suffix"
    """from the block's start to the canvas' end"""
    BLOCK = "block"
    """the block alone"""
    TRAIL = "trail"
    """from the leftmost position committed at the last step, over all rows, to the block's end"""
    OPEN = "open"
    """each row's undecided positions to the canvas' end, and those that it committed at the last step"""
    TOKENS = "tokens"
    """the block's own tokens, the first of which is decided: with a logit shift as much further right than the block"""


class Phase(Enum):
    """What a cache store does with the keys and values of a step, beside writing them."""

    ALL = "all"
    """attention reads every cached position"""
    SELECT = "select"
    """as ALL, and the store chooses which positions the block's later steps will read"""
    KEPT = "kept"
    """attention reads the chosen positions and the block's own"""


class Drift(NamedTuple):
    """How stale the caches were that a refresh made fresh.

    For each position `mean |v - held| / (rms(held) + 1e-6)` over the features of its values; the mean over positions and
    layers, under guidance over those of both branches, the largest over the rows.
    """

    block: float
    """of the block's positions"""
    prompt: float | None
    """of the positions left of the block; None if the refresh left them out"""


class Moment(NamedTuple):
    """When a step happens."""

    step: int
    """step of the whole generation; jumps to the next multiple of block_length at a block's start"""
    step_in_block: int
    """step of the block, from 0"""
    block: int
    """number of the block, from 0"""
    unrefreshed: int | None = None
    """positions committed since the last refresh, by the row that committed most at each step, the refresh's own
    included; None where only the device knows"""
    since_refresh: int | None = None
    """steps since the last refresh, 1 right after it; None before the first"""
    since_prompt: int | None = None
    """steps since everything left of the block was last refreshed; None before the first"""
    learned: tuple[float, ...] = ()
    """what a policy that learns from drift has made of it; empty for others"""
    first_undecided: bool | None = None
    """whether any row's first token of the block is undecided; None where only the device knows"""


class Scope(NamedTuple):
    """A refresh policy's answer: which positions, and whether to compute all of them in every layer."""

    window: Window
    """which positions the step computes in its first layer"""
    refresh: bool
    """whether no layer skips any of them"""
    from_layer: int = 0
    """the first layer that computes all of them, each from what it remembers; those before it compute the block alone (see
    `LayeredRefresh`)"""


class Block(NamedTuple):
    """A half-open range of computed positions that is decoded together."""

    start: int
    """the first position"""
    stop: int
    """one beyond the last position"""


class Layout(NamedTuple):
    """A canvas as planning sees it."""

    length: int
    """L, columns of the canvas"""
    masks: tuple[tuple[int, ...], ...]
    """for every row, the computed positions still to be decided, ascending"""
    starts: tuple[int, ...] = ()
    """for every row, its first column that is no padding; empty if nothing is padded"""
    attention: BlockCausal | None = None
    """which positions a position sees; its blocks begin at the columns that its size divides"""
    logit_shift: int = 0
    """s, which a block-causal model's blocks are cut by"""
    spare: int = 0
    """columns of padding at the head of every row that windows of the canvas leave out"""

    @property
    def canvas(self) -> Block:
        """The columns that a window of the canvas holds."""
        return Block(self.spare, self.length)

    @property
    def width(self) -> int:
        """The number of columns that a window of the canvas holds."""
        return self.length - self.spare

    @classmethod
    def of(
        cls, prompt: int, gen_length: int, logit_shift: int, rows: int = 1, attention: BlockCausal | None = None
    ) -> Layout:
        """Return the layout of `rows` prompts of `prompt` tokens, each followed by `gen_length` masks."""
        first = prompt - logit_shift
        masks = (tuple(range(first, first + gen_length)),) * rows
        return cls(prompt + gen_length, masks, attention=attention, logit_shift=logit_shift)


class Facts(NamedTuple):
    """What planning may ask of the device between two steps."""

    undecided: int
    """masked positions of the block, one more where it may still be edited; the largest number over the rows"""
    committed: int
    """positions committed at the last step, the largest number over the rows"""
    leftmost: int
    """leftmost position committed at the last step, over the rows; the canvas' length if none"""
    finished: bool
    """whether every row is decided up to an end-of-text"""
    open: int = 0
    """positions undecided or committed at the last step, the largest number over the rows"""
    drift: Drift | None = None
    """what the last step measured; None if it did not"""
    first_undecided: bool = False
    """whether the block's first position is undecided in any row"""


class StepPlan(NamedTuple):
    """The static half of a step: everything that shapes depend on. One compiled graph each."""

    window: int
    """N, positions computed in the first layer"""
    block: int
    """M, positions that can be decoded"""
    decided: int
    """of each row, the positions whose logits are computed: the block's masked ones, and others if a row has fewer"""
    keep: tuple[int, ...]
    """for every layer, the number of positions it hands on"""
    scored: tuple[int, ...]
    """the skip layers, whose scored tensor is remembered for the next comparison"""
    phase: Phase = Phase.ALL
    """what attention reads of the cache"""
    clamped: bool = False
    """whether the window's head repeats the leftmost position committed at the last step"""
    narrow: bool = False
    """whether the last layer computes queries and feed-forward for the block alone"""
    open: bool = False
    """whether the window is that of `Window.OPEN`, which only the device can name"""
    visible: int | None = None
    """K, the first columns of the canvas that attention reads; None for all"""
    measured: bool = False
    """whether the step compares the values that it computes with those that the cache held"""
    padded: bool = False
    """whether the step drops positions of a window that may hold padding, which then goes first"""
    written: int | None = None
    """positions of a block in which a window of several writes keys, which a query reads to its block's end; None if all do"""
    leads: bool = False
    """whether the window's last row decides the token behind it, whatever the model's shift"""
    returning: tuple[int, ...] = ()
    """the layers at which dropped positions may come back, with the hidden states that are remembered for them"""
    joining: tuple[int, ...] = ()
    """the layers from which a refresh may begin; their input is remembered too"""
    from_layer: int = 0
    """the first layer that computes the whole window; those before it compute the block alone"""

    @property
    def skips(self) -> bool:
        """Whether any layer drops a position of any row."""
        return min(self.keep) < self.window or self.padded

    @property
    def hands_on_fewer(self) -> bool:
        """Whether the last layer hands on fewer positions than the window holds."""
        return self.keep[-1] < self.window or self.padded

    @property
    def computed(self) -> tuple[int, ...]:
        """For every layer, the number of positions it computes (hidden-site count)."""
        before = (self.block,) * self.from_layer
        return (*before, *(self.window, *self.keep[:-1])[self.from_layer :])

    def layer_work(self) -> int:
        """Return the positions computed, summed over the layers."""
        return sum(self.computed)


class Step(NamedTuple):
    """One denoising step: its plan, and where and when it happens."""

    plan: StepPlan
    """what shapes depend on"""
    moment: Moment
    """when it happens"""
    start: int | None
    """first position of the window; None where the device places the window"""
    block: Block
    """the block being decoded; where every row has its own, the range in which they all lie"""
    counts: tuple[int, ...]
    """for every row, how many positions to commit; a policy that decides by itself ignores it"""
    scope: Scope
    """what the refresh policy asked for; a refresh too where the store or what comes into sight asks for one"""
    reach: int | None = None
    """positions before each row's own block that a window of the block computes too; None if all rows share the block"""
    suffix: tuple[int, ...] | None = None
    """positions right of the block that are seen, ascending; None for all"""
    beyond: tuple[int, ...] = ()
    """those of them that the window holds too; where none are pruned, it simply goes on"""
    keeps: tuple[tuple[int, ...], ...] | None = None
    """for every row and layer, how many of its own positions go on, as if it were alone; None if all rows keep the plan's"""
    sight: int | None = None
    """the first columns of the canvas, which alone are seen: up to the end of a block-causal model's block; None for all"""
    begun: tuple[int, ...] | None = None
    """for every row, the step of the run at which its first block began, where rows begin at different ones; None if at 0"""
    borders: tuple[int, int] = (0, 0)
    """where `plan.written` is told: the columns of the prompt if that is one block, else 0, and the first of the last block"""
    filler: Block | None = None
    """columns behind the canvas, hidden from attention, that window and block end with, so that a short block is as long as
    others; None if they end with the block"""

    def unfilled(self) -> Step:
        """Return the step without its filler, which is what a row alone makes: of its own block and keep counts."""
        if self.filler is None:
            return self
        plan, more = self.plan, self.filler.stop - self.filler.start
        window, block = plan.window - more, plan.block - more
        keep = (window,) * len(plan.keep) if self.keeps is None else self.keeps[0]
        handed = keep[-1] if keep[-1] < window else block
        narrow = keep[-1] == window > block and len(keep) - 1 not in plan.scored
        decided = min(plan.decided, handed)
        plan = plan._replace(window=window, block=block, decided=decided, keep=keep, narrow=narrow, padded=False)
        return self._replace(plan=plan, keeps=None, filler=None)
