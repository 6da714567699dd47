"""What makes no sense for block-causal models is refused by name, and what does goes on making sense."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest
import torch
from helpers import offers
from oracle import block_causal
from test_block_causal import FORMS, PROMPTS, engine_of, model_of

from esdllm import (
    BlockCausal,
    Catalogue,
    CheckpointError,
    ConfigError,
    Engine,
    InputError,
    KeyValue,
    ModelSpec,
    PluginError,
    Stream,
    UnavailableError,
)
from esdllm.runtime.records import until_stop
from esdllm_backends.attention.eager import EagerAttention


@attrs.frozen
class Old:
    """A backend made before there were block-causal models."""

    rank: ClassVar[int] = 1

    def problems(self, spec: ModelSpec, device: torch.device, dtype: torch.dtype) -> list[str]:
        return []

    def attend(self, queries: torch.Tensor, read: KeyValue) -> torch.Tensor:
        return EagerAttention().attend(queries, KeyValue(read.keys, read.values, read.bias, read.padding))


@attrs.frozen
class Denying(Old):
    """One that says that it does not serve them."""

    block_causal: ClassVar[bool] = False


@attrs.frozen
class Lying(Old):
    """One that says that it serves them, and reads everything."""

    block_causal: ClassVar[bool] = True


def with_backend(backend: type) -> Catalogue:
    return Catalogue.load({"made-up": offers("esdllm_attention_backends", {"made-up": backend})})


def built(catalogue: Catalogue, kind: BlockCausal | None, **settings: Any) -> Engine:
    model = model_of(BlockCausal(4))
    model = attrs.evolve(model, adapter=attrs.evolve(model.adapter, spec=attrs.evolve(model.spec, attention=kind)))
    return Engine.build(model, catalogue.configure("dual-cache", settings={"gen_length": 8, **settings}), catalogue)


@pytest.mark.parametrize("backend", [Old, Denying])
def test_a_backend_that_does_not_say_that_it_serves_blocks_is_refused_by_name_and_serves_other_models(
    backend: type,
) -> None:
    catalogue = with_backend(backend)
    with pytest.raises(
        UnavailableError, match=r"attention 'made-up' cannot serve here.*block-causal.*block_causal = True"
    ):
        built(catalogue, BlockCausal(4), attention="made-up")
    assert built(catalogue, None, attention="made-up").generate([PROMPTS[0]]).answers


def test_auto_goes_on_to_one_that_serves_and_says_why_not_the_first() -> None:
    catalogue = with_backend(Old)
    assert built(catalogue, None, attention="auto").components.attention_choice.name == "made-up"  # type: ignore[union-attr]
    choice = built(catalogue, BlockCausal(4), attention="auto").components.attention_choice
    assert choice is not None
    assert choice.name in ("sdpa", "matmul")
    assert "block-causal (blocks of 4)" in choice.others["made-up"][0]


def test_a_backend_that_says_so_and_reads_everything_is_found_before_the_first_run() -> None:
    with pytest.raises(PluginError, match=r"made-up.*reads keys of blocks behind a query's own"):
        built(with_backend(Lying), BlockCausal(4), attention="made-up")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"blocks": "sliding"}, 'one after the other.*blocks = "fixed"'),
        ({"blocks": "own"}, 'one after the other.*blocks = "fixed"'),
        ({"blocks": "pruned"}, 'no suffix to prune.*blocks = "fixed"'),
        ({"cache": "sparse"}, 'up to its block\'s end; choose cache = "dense"'),
        ({"refresh": "delayed"}, 'beyond its block.*"dual-cache"'),
        ({"cache": "none"}, 'keys that the cache store does not hold; choose cache = "dense"'),
        ({"cache": "none", "refresh": "every-step", "skip": "by-depth"}, None),
    ],
)
def test_settings_that_make_no_sense_are_refused_as_the_engine_is_built(
    settings: dict[str, Any], told: str | None
) -> None:
    model = model_of(BlockCausal(4))
    if told is None:
        assert engine_of(model, "dual-cache", **settings).generate([PROMPTS[0]]).answers
        return
    with pytest.raises(ConfigError, match=told):
        engine_of(model, "dual-cache", **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"refresh": "on-commit"},
        {"refresh": "partial", "skip": "by-depth"},
        {"refresh": "drift", "skip": "by-depth"},
        {"unmasking": {"name": "threshold", "threshold": 0.1}},
        {"unmasking": "wino"},
        {"unmasking": "klass"},
        {"unmasking": "linear-schedule"},
        {"cache": "int8"},
        {"cache": "offloaded"},
        {"skip": "adaptive", "importance": "entropy"},
        {"cfg_scale": 0.5},
        {"delay_eos": True},
        {"early_stop": True, "check_every": 1},
        {"sampler": {"name": "gumbel", "temperature": 0.7}},
        {"block_length": 3},
        {"block_length": 1},
        {"block_length": 64},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["start, filled", "prompt-end, causally written", "start, shifted, unfilled"])
def test_other_policies_go_on_as_they_are_and_rows_stay_apart(form: str, settings: dict[str, Any]) -> None:
    engine = engine_of(model_of(*FORMS[form]), "dual-cache", **settings)
    made = engine.generate(PROMPTS)
    assert all(engine.model.spec.mask_id not in answer and len(answer) <= 10 for answer in made.answers)
    shares = settings.get("unmasking", {}) or settings.get("refresh") in ("drift",) or settings.get("skip")
    if not shares:
        assert [engine.generate([prompt]).answers[0] for prompt in PROMPTS] == made.answers


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("holes", [(3, 4), (2, 9, 10, 17), (1,), (5, 6, 7, 8, 19)])
def test_holes_are_filled_in_block_by_block_and_what_is_given_to_the_right_is_not_seen(
    form: str, holes: tuple[int, ...]
) -> None:
    model = model_of(*FORMS[form])
    row = [(7 * place) % 60 for place in range(20)]
    canvas = [model.spec.mask_id if place in holes else token for place, token in enumerate(row)]
    expected = block_causal(model.adapter, canvas, fill=False)
    assert expected.margin > 1e-6
    engine = engine_of(model, "dual-cache")
    found = engine.generate([canvas], infill=True)
    assert found.answers[0] == expected.tokens[:20]
    assert [token for place, token in enumerate(found.answers[0]) if place not in holes] == [
        token for place, token in enumerate(row) if place not in holes
    ]


def test_a_block_s_first_token_needs_one_before_it() -> None:
    model = model_of(BlockCausal(4, "prompt-end", written=1, leads=True))
    with pytest.raises(InputError, match="decides a block's first token from what is before"):
        engine_of(model, "dual-cache").generate([[model.spec.mask_id, 4, 5]], infill=True)
    plain = model_of(BlockCausal(4))
    assert len(engine_of(plain, "dual-cache").generate([[plain.spec.mask_id, 4, 5]], infill=True).answers[0]) == 3


@pytest.mark.parametrize(("shift", "leads"), [(1, False), (2, True), (2, False)])
def test_a_shift_that_a_block_cannot_have_is_refused(shift: int, leads: bool) -> None:
    with pytest.raises(CheckpointError, match=f"logit shift {shift}"):
        model_of(BlockCausal(4, leads=leads), shift)


@pytest.mark.parametrize("form", ["start", "prompt-end", "start, filled", "written in halves"])
def test_a_finished_block_s_keys_written_with_the_next_block_s_step_are_those_written_by_themselves(form: str) -> None:
    """A pass over two blocks under the mask, and two passes one after the other: the same keys, the same hidden states."""
    model = model_of(*FORMS[form])
    adapter, attention = model.adapter, model.spec.attention
    assert attention is not None
    size, backend = attention.size, EagerAttention()
    tokens = torch.randint(0, 60, (2, 3 * size), generator=torch.Generator().manual_seed(1))
    numbers = torch.arange(3 * size).expand(2, -1) // attention.write_size
    numbers = torch.where(numbers * attention.write_size < 2 * size, numbers, 3 * size)

    def passed(columns: range, held: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[Any, list[Any]]:
        places = adapter.encode(torch.arange(columns.start, columns.stop).expand(2, -1))
        hidden, kept = adapter.embed(tokens[:, columns.start : columns.stop]), []
        for layer in range(model.spec.n_layers):
            made = adapter.project(layer, hidden, places)
            keys, values = (
                torch.cat([before[:, : columns.start], now], 1)
                for before, now in zip(held[layer], (made.keys, made.values), strict=True)
            )
            asked, read = numbers[:, columns.start : columns.stop], numbers[:, : columns.stop]
            hidden = adapter.mix(
                layer, hidden, backend.attend(made.queries, KeyValue(keys, values, None, None, asked, read))
            )
            kept.append((keys, values))
        return hidden, kept

    none = [(torch.empty(2, 0, model.spec.n_kv_heads, model.spec.head_dim),) * 2] * model.spec.n_layers
    prefix = passed(range(size), none)[1]
    together, kept = passed(range(size, 3 * size), prefix)
    written = passed(range(size, 2 * size), prefix)
    after = passed(range(2 * size, 3 * size), written[1])
    torch.testing.assert_close(together[:, size:], after[0], rtol=1e-5, atol=1e-5)
    for one, other in zip(kept, after[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_stream_and_a_slot_show_the_answer_and_nothing_beside_it(form: str) -> None:
    """Neither what pads a row so that blocks begin where they should, nor what fills its last block."""
    engine = engine_of(model_of(*FORMS[form]), "dual-cache")
    for prompt in PROMPTS:
        answer = engine.generate([prompt]).answers[0]
        frames = [event.frame for event in Stream(engine, [prompt], None)]
        assert {len(frame.tokens) for frame in frames} == {10}
        assert until_stop(frames[-1].tokens, engine.model.stop_ids) == answer
        slots = engine.slots(1, 24)
        slot = slots.admit([prompt])
        while slots.groups():
            slots.step([slot])
            record = slots.show([slot])[slot]
            assert record.tokens[0, : len(prompt)].tolist() == prompt
            assert record.tokens.shape[1] == len(prompt) + 10
        assert until_stop(record.tokens[0, len(prompt) :].tolist(), engine.model.stop_ids) == answer
        assert slots.take(slot).answers[0] == answer
        slots.close()
