"""The law of the exact prefix: in a block-causal model, what is cached of finished blocks is what computing it anew would give.

Over random forms of attention, models, prompts and policies, skipping ones among them; the expected numbers are those of a dense
pass under the mask, written down by itself (`tests/oracle.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import attrs
import pytest
import torch
from drawing import (
    ADAPTIVE,
    CATALOGUE,
    FIXED,
    IMPORTANCE,
    MASK,
    PARTIAL,
    PERIODIC,
    SKIPS,
    Settings,
    Shape,
    model_of,
    rows,
)
from hypothesis import event, given
from hypothesis import strategies as st
from oracle import whole
from sampling import examples
from torch import Tensor

from esdllm import BlockCausal, Engine, Generation, Model, ModelSpec, StepRecord

pytestmark = pytest.mark.no_cover  # thousands of small generations, which measuring slows fivefold

REFRESHES = (
    PERIODIC
    | PARTIAL
    | st.sampled_from([{"name": "dual-cache"}, {"name": "prefix-cache"}, {"name": "every-step"}, {"name": "drift"}])
)


class Form(NamedTuple):
    """Says which random model; short to print where a law fails."""

    shape: Shape
    attention: BlockCausal
    shift: int

    @property
    def model(self) -> Model:
        made = model_of(self.shape)
        spec = attrs.evolve(made.spec, attention=self.attention, logit_shift=self.shift)
        return attrs.evolve(made, adapter=attrs.evolve(made.adapter, spec=spec))


@st.composite
def forms(draw: st.DrawFn) -> Form:
    """Draw a random model of any form of block-causal attention."""
    size, leads = draw(st.integers(1, 9)), draw(st.booleans())
    attention = BlockCausal(
        size,
        draw(st.sampled_from(["start", "prompt-end"])),
        written=draw(st.sampled_from([None, *(n for n in range(1, size) if size % n == 0)])),
        leads=leads,
        fills=draw(st.booleans()),
    )
    if attention.grid == "prompt-end" and draw(st.booleans()):
        attention = attrs.evolve(attention, written=None, whole_prompt=True)
    shift = draw(st.integers(0, 1)) if leads else 0
    event(f"grid: {attention.grid}, written apart: {attention.written is not None}, leads: {leads}, shift: {shift}")
    return Form(
        Shape("llada", draw(st.integers(1, 3)), 2, draw(st.integers(1, 2)), 4, draw(st.integers(0, 2))),
        attention,
        shift,
    )


def engine_of(model: Model, settings: Settings) -> Engine:
    fixed = {"early_stop": False, "attention": "sdpa", "cache": "dense"}
    return Engine.build(model, CATALOGUE.configure("dual-cache", settings={**fixed, **settings}), CATALOGUE)


def numbers(form: BlockCausal, start: int, stop: int, border: int, prompt: int) -> list[int]:
    """Return the numbers of the blocks of columns: as written before the `border`, one from there on."""
    size, whole_until = form.written or form.size, start + prompt if form.whole_prompt else 0
    return [
        border if column >= border else -1 if column < whole_until else column // size for column in range(start, stop)
    ]


def first_column(model: Model, prompts: list[list[int]], made: Generation, row: int) -> int:
    """Return the first column of a row: its blocks end where the others' end."""
    form, length = model.spec.attention, made.tokens.shape[1]
    assert form is not None
    tokens = made.tokens[row].tolist()
    own = len(prompts[row])
    return next(
        start
        for start in range(length)
        if tokens[start : start + own] == prompts[row]
        and (start if form.grid == "start" else start + own) % form.size == 0
        and all(token == model.spec.eos_id for token in tokens[:start])
    )


@given(
    form=forms(),
    prompts=rows,
    gen_length=st.integers(1, 20),
    block_length=st.integers(1, 9),
    refresh=REFRESHES,
    skip=st.one_of(*SKIPS.values()),
    importance=IMPORTANCE,
    unmasking=FIXED | ADAPTIVE,
)
@examples(100)
def test_the_keys_of_finished_blocks_are_those_of_a_fresh_pass_whatever_was_skipped(
    form: Form, prompts: list[list[int]], gen_length: int, block_length: int, **policies: Any
) -> None:
    model, attention = form.model, form.attention
    engine = engine_of(model, {"gen_length": gen_length, "block_length": block_length, **policies})
    watch = Watch()
    made = engine.generate(prompts, observers=[watch])
    cache, length = engine.cache, made.tokens.shape[1]
    assert cache is not None
    room = watch.tokens[0].shape[1] - length
    final = (length - 1) // attention.size * attention.size
    for row in range(len(prompts)):
        start = first_column(model, prompts, made, row)
        if start >= final:
            continue
        fresh = whole(
            model.adapter,
            made.tokens[row, start:final].tolist(),
            numbers(attention, start, final, final, len(prompts[row])),
        )
        columns = room + torch.arange(start, final).expand(len(prompts), -1)
        for layer in range(model.spec.n_layers):
            for site, expected in (("key", fresh.keys[layer]), ("value", fresh.values[layer])):
                held = cache.recall(layer, site, columns)[row]  # type: ignore[arg-type]
                torch.testing.assert_close(held, expected.flatten(1), rtol=1e-9, atol=1e-9)


class Watch:
    """Keeps what each step showed."""

    def __init__(self) -> None:
        self.tokens: list[Tensor] = []
        self.records: list[StepRecord] = []

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        self.tokens.append(tokens.clone())

    def step(self, record: StepRecord) -> None:
        assert record.guess_confidence is not None
        assert record.computed is not None
        kept = {name: getattr(record, name).clone() for name in ("guess_confidence", "computed")}
        self.records.append(record._replace(**kept))
        self.tokens.append(record.tokens.clone())

    def end(self) -> None: ...


@given(
    form=forms(),
    prompts=rows,
    gen_length=st.integers(1, 16),
    block_length=st.integers(1, 9),
    unmasking=FIXED | ADAPTIVE,
    cache=st.sampled_from(["dense", "none"]),
)
@examples(60)
def test_a_step_over_the_cached_prefix_is_the_whole_pass_under_the_mask(
    form: Form, prompts: list[list[int]], gen_length: int, block_length: int, **policies: Any
) -> None:
    settings = {"gen_length": gen_length, "block_length": block_length, "refresh": "every-step", **policies}
    model, watch, size, shift = form.model, Watch(), form.attention.size, form.shift
    made = engine_of(model, settings).generate(prompts, observers=[watch])
    room = watch.tokens[0].shape[1] - made.tokens.shape[1]
    starts = [room + first_column(model, prompts, made, row) for row in range(len(prompts))]
    for before, record in zip(watch.tokens, watch.records, strict=False):
        leads = record.plan.leads
        place = record.block.start + shift
        border = place // size * size  # of the block that holds the first token decided
        for row, start in enumerate(starts):
            end = before.shape[1] if form.attention.fills else start + len(prompts[row]) + gen_length
            stop = border if leads else min(border + size, end)
            assert record.computed is not None
            assert record.guess_confidence is not None
            columns = [c for c in range(start, end) if record.computed[row, c] and before[row, c] == MASK]
            if start >= stop or not columns:
                continue
            said = numbers(form.attention, start, stop, stop if leads else border, len(prompts[row]))
            logits = whole(model.adapter, before[row, start:stop].tolist(), said).logits
            for column in columns:
                source = column - 1 if leads else column - shift
                if source < (start if leads else border) or source >= stop:
                    continue  # a position beside what is decided, whose logits decide nothing
                chances = logits[source - start].double().softmax(-1)
                chances[MASK] = 0
                assert float(record.guess_confidence[row, column]) == pytest.approx(float(chances.max()), abs=1e-5)


@given(form=forms(), prompts=rows, gen_length=st.integers(1, 16), block_length=st.integers(1, 9), unmasking=FIXED)
@examples(40)
def test_a_row_of_a_batch_is_the_row_alone_and_the_cache_changes_no_token(
    form: Form, prompts: list[list[int]], gen_length: int, block_length: int, unmasking: Settings
) -> None:
    settings = {"gen_length": gen_length, "block_length": block_length, "unmasking": unmasking}
    model = form.model
    cached = engine_of(model, {**settings, "refresh": "every-step"}).generate(prompts)
    anew = engine_of(model, {**settings, "refresh": "every-step", "cache": "none"})
    assert anew.generate(prompts).answers == cached.answers
    assert [anew.generate([prompt]).answers[0] for prompt in prompts] == cached.answers
