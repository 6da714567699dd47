"""One step for rows of different ages: what moves is a number for each row, sent to the device at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from esdllm.interfaces import MovingBlocks
from esdllm.plan import Step, StepPlan
from esdllm.runtime.canvas import Canvas
from esdllm.runtime.parts import StepInputs
from esdllm.views import BlockView

__all__ = ["form", "hidden", "joined", "own_blocks", "own_length", "placed", "sent", "shared_inputs"]


def form(step: Step) -> Hashable:
    """Return what the next steps of rows have in common that can be made as one.

    Of how many positions the logits are computed is no part of it: more than a row needs change nothing. Nor is what a row keeps
    of its own, for every row is told that by itself.
    """
    lies = step.block if step.start is None or step.reach is not None else step.block.start - step.start
    sees = None if step.suffix is None else (len(step.suffix), _reads_what_it_sees(step))
    plan = step.plan._replace(decided=0, padded=False)
    return plan, lies, step.reach, len(step.beyond), sees, step.sight is None


def joined(steps: list[Step], as_recorded: bool) -> tuple[list[Step], StepPlan]:
    """Return steps of one form, as they are made together, and the plan of that.

    Short blocks of one length go without filler; not so where the form of whole ones may be known `as_recorded`.
    """
    if not as_recorded and all(step.filler is not None for step in steps):
        unfilled = [step.unfilled() for step in steps]
        steps = unfilled if len({form(step) for step in unfilled}) == 1 else steps
    plan = max((step.plan for step in steps), key=lambda plan: plan.decided)
    return steps, plan._replace(padded=any(step.plan.padded for step in steps))


def _reads_what_it_sees(step: Step) -> bool:
    """Return whether attention reads no column beyond those that the step sees."""
    return step.suffix is None or step.plan.visible == step.block.stop + len(step.suffix)


def placed(step: Step, block: Tensor, columns: Tensor, window: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """Return a step's window (B, N), and its block (B, M) as indices into that, (M,) or (B, M).

    `window` gives the window of a step that says where it begins.
    """
    plan = step.plan
    if plan.open:
        return block[:, :0], columns[:0]
    if step.start is None:
        first = step.reach or 0
        return block[:, :1] - first + columns[: plan.window], columns[first : first + plan.block]
    first = plan.window - 1 if plan.leads else step.block.start - step.start
    return window(), columns[first : first + plan.block] if step.reach is None else block - step.start


def shared_inputs(
    canvas: Canvas, steps: Sequence[Step], blocks: MovingBlocks | None, dtype: torch.dtype, as_recorded: bool
) -> StepInputs:
    """Return the inputs of one step over a canvas whose row r makes `steps[r]`, all of one form.

    `dtype` is the model's; `as_recorded` says whether the step may be a compiled or recorded one, which reads tensors alone.
    """
    columns, step = canvas.columns, steps[0]
    starts, begins, counts, moments, moments_in_block, numbers, lengths = _numbers(steps, columns.device)
    plan, fill = step.plan, _filling(steps, columns.device)
    block = fill(begins + columns[: plan.block]) if step.reach is None else own_blocks(canvas, step, blocks)

    def begun() -> Tensor:
        found = fill(starts + columns[: plan.window - len(step.beyond)])
        return torch.cat([found, sent([each.beyond for each in steps], columns.device)], 1) if step.beyond else found

    window, readers = placed(step, block, columns, begun)
    bias, padding = hidden(canvas, steps, dtype)
    keeps, own = None, None
    if any(each.keeps is not None for each in steps):
        keeps = [plan.keep if each.keeps is None else each.keeps[0] for each in steps]
        if not as_recorded and any(each.filler is not None for each in steps):
            filled = [plan.block - own_length(each) for each in steps]
            own = [(plan.window - more, *kept) for more, kept in zip(filled, keeps, strict=True)]
    return StepInputs(
        window=window,
        block=block,
        readers=readers,
        counts=counts,
        step=moments,
        step_in_block=moments_in_block,
        block_number=numbers,
        block_length=lengths,
        bias=bias,
        keeps=None if keeps is None else sent(keeps, columns.device),
        padding=padding,
        borders=None if plan.written is None else sent([each.borders for each in steps], columns.device),
        own=own,
    )


def _filling(steps: Sequence[Step], device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what puts positions (B, N) that go on beyond a row's block into the columns that fill it up."""
    if all(step.filler is None for step in steps):
        return lambda positions: positions
    jumps = [(step.block.stop, 0 if step.filler is None else step.filler.start - step.block.stop) for step in steps]
    stops, gaps = sent(jumps, device).unsqueeze(2).unbind(1)
    return lambda positions: positions + gaps * (positions >= stops)


def _numbers(steps: Sequence[Step], device: torch.device) -> tuple[Tensor, ...]:
    """Return the first positions of windows and blocks (B, 1), and (B,) each: counts, the steps behind each row and its block,
    that block's number and its length.
    """
    rows = [(step.start or 0, step.block.start, step.counts[0], *step.moment[:3], own_length(step)) for step in steps]
    starts, begins, counts, moments, moments_in_block, numbers, lengths = sent(rows, device).unbind(1)
    return starts.unsqueeze(1), begins.unsqueeze(1), counts, moments, moments_in_block, numbers, lengths


def own_length(step: Step) -> int:
    """Return the positions of a row's block, without what fills it up."""
    return step.plan.block if step.reach is not None else step.block.stop - step.block.start


def sent(rows: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return integers, (B,) or (B, K), as int64 on a device."""
    return torch.tensor(rows, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def own_blocks(canvas: Canvas, step: Step, blocks: MovingBlocks | None) -> Tensor:
    """Return (B, M) int64, each row's block."""
    if blocks is None:
        raise AssertionError("a step with a block for every row is planned by a schedule of moving blocks only")
    begin, stop = step.block
    view = BlockView(canvas.first_undecided(), canvas.undecided, begin, stop, step.plan.block)
    starts = blocks.starts(view).clamp(begin, stop - step.plan.block)
    return starts.unsqueeze(1) + canvas.columns[: step.plan.block]


def hidden(canvas: Canvas, steps: Sequence[Step], dtype: torch.dtype) -> tuple[Tensor | None, Tensor | None]:
    """Return the bias (R, L) of what attention may read, and the padding (R,) if that is all it hides.

    `steps` is each row's, or one for all rows; `dtype` the model's.
    """
    if steps[0].sight is not None:
        return _sighted(canvas, steps, steps[0].sight, dtype)
    whole = _reads_what_it_sees(steps[0])
    return (canvas.bias, canvas.padding) if whole else (_pruned(canvas, steps, dtype), None)


def _sighted(
    canvas: Canvas, steps: Sequence[Step], first: int, dtype: torch.dtype
) -> tuple[Tensor | None, Tensor | None]:
    """Return what of a block-causal model's canvas is hidden.

    A row all of which that is seen is padding reads that: it decides nothing, and would be left without any key.
    """
    bias, padding, exact = canvas.bias, canvas.padding, steps[0].plan.visible == first
    if bias is None and exact:
        return None, None
    sights = canvas.rows(
        sent([(step.sight or 0,) for step in steps], canvas.columns.device).expand(len(canvas.tokens), 1)
    )
    seen = canvas.columns < sights  # (R, L)
    if bias is None:
        bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    else:
        lost = ~((bias == 0) & seen).any(1, keepdim=True)
        bias = bias.masked_fill(lost, 0.0)
        padding = None if padding is None else padding.masked_fill(lost.squeeze(1), 0)
    return (bias, padding) if exact else (bias.masked_fill(~seen, float("-inf")), None)


def _pruned(canvas: Canvas, steps: Sequence[Step], dtype: torch.dtype) -> Tensor:
    """Return (R, L), -inf at padding and at what right of the block a row's step does not see; one step is that of all rows."""
    columns = canvas.columns
    stops = sent([(step.block.stop,) for step in steps], columns.device)
    out = columns >= stops
    if steps[0].suffix:
        out = out.scatter(1, sent([step.suffix or () for step in steps], columns.device), False)
    out = canvas.rows(out.expand(canvas.tokens.shape))
    bias = torch.zeros(out.shape, dtype=dtype, device=out.device) if canvas.bias is None else canvas.bias
    return bias.masked_fill(out, float("-inf"))
