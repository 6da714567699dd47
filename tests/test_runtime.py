"""Laws of the runtime: what a generation may depend on, and what it may not do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pluggy
import pytest
import torch
from helpers import CASES
from hypothesis import given, settings
from hypothesis import strategies as st

from esdllm import Catalogue, Engine, Generation, Model, StepRecord, load_model

MODELS = ("llada-0", "dream-0")
MODES = ("vanilla", "prefix-cache", "dual-cache", "es-dllm")
SHORT: dict[str, Any] = {
    "gen_length": 24,
    "block_length": 8,
    "early_stop": False,
}
REFRESH = {"refresh": {"prompt_refresh": 8, "block_refresh": 4}}


@pytest.fixture(scope="session")
def models(llada: Model, dream: Model) -> dict[str, Model]:
    return {"llada-0": llada, "dream-0": dream}


@pytest.fixture
def build(models: dict[str, Model], catalogue: Catalogue) -> Any:
    def make(model: str | Model, preset: str, **over: Any) -> Engine:
        base = {**SHORT, **(REFRESH if preset.startswith("es-dllm") else {}), **over}
        found = models[model] if isinstance(model, str) else model
        return Engine.build(found, catalogue.configure(preset, settings=base), catalogue)

    return make


def prompts(rows: int = 1, length: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 250, (rows, length), generator=torch.Generator().manual_seed(seed))


class Watch:
    """Keeps every record's tokens and commits."""

    def __init__(self) -> None:
        self.tokens: list[torch.Tensor] = []
        self.records: list[StepRecord] = []
        self.committed: list[torch.Tensor] = []
        self.ended = False

    def start(self, tokens: torch.Tensor, spec: Any) -> None:
        self.tokens.append(tokens.clone())

    def step(self, record: StepRecord) -> None:
        self.records.append(record)
        self.tokens.append(record.tokens.clone())
        self.committed.append(record.committed.clone())

    def end(self) -> None:
        self.ended = True


# --------------------------------------------------------------------------------------- what the step may not do


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", MODES)
def test_a_whole_generation_reads_nothing_from_the_device(
    name: str, mode: str, catalogue: Catalogue, build: Any
) -> None:
    """On the meta device any read raises."""
    shape_only = load_model(CASES / name, device="meta", catalogue=catalogue)
    result = build(shape_only, mode).generate(prompts(2))
    assert result.tokens.is_meta
    assert result.forwards == 24


@pytest.mark.parametrize("over", [{"cfg_scale": 1.0}, {"cache": "sparse"}, {"importance": {"site": "query"}}])
def test_no_option_reads_the_device(over: dict[str, Any], catalogue: Catalogue, build: Any) -> None:
    shape_only = load_model(CASES / "llada-0", device="meta", catalogue=catalogue)
    assert build(shape_only, "es-dllm", **over).generate(prompts()).forwards == 24


def test_an_adaptive_run_does_read_the_device(catalogue: Catalogue, build: Any) -> None:
    """So the meta device really tells."""
    shape_only = load_model(CASES / "llada-0", device="meta", catalogue=catalogue)
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        build(shape_only, "es-dllm-parallel").generate(prompts())


def test_no_hook_is_called_while_generating(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build("llada-0", "es-dllm")
    calls: list[str] = []
    call, entry = pluggy.HookCaller.__call__, Catalogue.entry

    def note_call(self: Any, **kwargs: Any) -> Any:
        if self.name.startswith("esdllm_"):
            calls.append(self.name)
        return call(self, **kwargs)

    def note_entry(self: Any, kind: str, name: str) -> Any:
        calls.append(name)
        return entry(self, kind, name)

    monkeypatch.setattr(pluggy.HookCaller, "__call__", note_call)
    monkeypatch.setattr(Catalogue, "entry", note_entry)
    engine.generate(prompts())
    assert calls == []
    build("llada-0", "es-dllm")
    assert calls  # so the monitor really listens


@pytest.mark.parametrize(
    ("name", "mode", "over"),
    [
        ("llada-0", "vanilla", {}),
        ("llada-0", "prefix-cache", {}),
        ("dream-0", "dual-cache", {}),
        ("llada-0", "es-dllm", {}),
        ("dream-0", "es-dllm", {}),
        ("llada-0", "es-dllm", {"importance": {"site": "key"}}),
        ("llada-0", "es-dllm", {"cfg_scale": 1.5}),
        ("llada-0", "es-dllm", {"cache": "sparse"}),
        ("llada-0", "es-dllm", {"sampler": {"temperature": 0.7, "top_k": 20, "top_p": 0.9}}),
    ],
)
def test_the_compiled_step_is_one_graph_a_plan_with_eager_s_tokens(
    name: str, mode: str, over: dict[str, Any], build: Any
) -> None:
    from esdllm.run import StepFunction

    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    engine = build(name, mode, **over)
    eager, watch = engine.generate(prompts(2)), Watch()
    engine.step_function = StepFunction(compiled=True, backend=count)
    compiled = engine.generate(prompts(2), observers=[watch])
    assert torch.equal(compiled.tokens, eager.tokens)
    assert len(graphs) == len({record.plan for record in watch.records})


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_the_inductor_s_step_gives_eager_s_tokens(name: str, build: Any) -> None:
    torch._dynamo.reset()
    eager = build(name, "es-dllm", gen_length=8).generate(prompts(2))
    compiled = build(name, "es-dllm", gen_length=8, compile=True).generate(prompts(2))
    assert torch.equal(compiled.tokens, eager.tokens)
    assert compiled.compile_seconds > 0 == eager.compile_seconds


def test_an_absent_observer_costs_nothing_and_a_present_one_sees_every_step(build: Any) -> None:
    watch = Watch()
    result = build("llada-0", "es-dllm").generate(prompts(), observers=[watch])
    assert len(watch.records) == result.steps == 24
    assert watch.ended
    assert watch.records[0].moment.step == 0
    assert torch.equal(watch.tokens[-1], result.tokens)


# ------------------------------------------------------------------------------------------- what a row depends on


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", MODES)
def test_a_row_of_a_batch_is_the_row_alone(name: str, mode: str, build: Any) -> None:
    """With early skipping: where each block begins with a prompt refresh, as in the published settings of 64."""
    engine = build(name, mode)
    rows = [prompts(1, length, seed=length)[0].tolist() for length in (12, 5, 9)]
    batch = engine.generate(rows)
    for number, row in enumerate(rows):
        assert engine.generate([row]).answers[0] == batch.answers[number]


@pytest.mark.parametrize("mode", MODES)
def test_permuting_the_rows_permutes_the_results(mode: str, build: Any) -> None:
    engine, rows = build("llada-0", mode), prompts(3)
    order = torch.tensor([2, 0, 1])
    assert torch.equal(engine.generate(rows[order]).tokens, engine.generate(rows).tokens[order])


@pytest.mark.parametrize("mode", MODES)
def test_left_padding_changes_nothing(mode: str, build: Any) -> None:
    engine, row = build("llada-0", mode), prompts(1, 9)
    padded = torch.cat([torch.full((1, 5), 253), row], dim=1)
    mask = torch.tensor([[0] * 5 + [1] * 9])
    assert engine.generate(padded, attention_mask=mask).answers == engine.generate(row).answers


def test_a_second_run_is_the_first(build: Any) -> None:
    engine = build("llada-0", "es-dllm", cache="sparse")
    first = engine.generate(prompts(2))
    engine.generate(prompts(2, seed=5))
    assert torch.equal(engine.generate(prompts(2)).tokens, first.tokens)


@pytest.mark.parametrize("mode", MODES)
def test_a_committed_token_never_changes_and_the_prompt_stays(mode: str, build: Any) -> None:
    watch = Watch()
    build("dream-0", f"{mode}-parallel", unmasking={"threshold": 0.2}).generate(prompts(2), observers=[watch])
    for before, after, committed in zip(watch.tokens, watch.tokens[1:], watch.committed, strict=False):
        assert torch.equal(before[~committed], after[~committed])
        assert (before[committed] == 254).all()


# ----------------------------------------------------------------------------------------------- equal by definition


@pytest.mark.parametrize("name", MODELS)
def test_keep_ratio_1_is_no_skipping(name: str, build: Any) -> None:
    kept = build(name, "es-dllm", skip={"keep": [[0, 1]]})
    none = build(name, "es-dllm", skip="none")
    assert torch.equal(kept.generate(prompts(2)).tokens, none.generate(prompts(2)).tokens)


@pytest.mark.parametrize("name", MODELS)
def test_refreshing_everything_at_every_step_is_vanilla(name: str, build: Any) -> None:
    everything = build(name, "vanilla", cache="dense", skip="by-depth")
    assert torch.equal(everything.generate(prompts(2)).tokens, build(name, "vanilla").generate(prompts(2)).tokens)


@pytest.mark.parametrize("site", ["hidden", "query", "key", "value"])
def test_the_confidence_scorer_is_the_hybrid_at_alpha_1_and_the_variation_scorer_at_0(site: str, build: Any) -> None:
    for name, alpha in (("confidence", 1.0), ("variation", 0.0)):
        alone = build("llada-0", "es-dllm", importance={"name": name, "site": site})
        hybrid = build("llada-0", "es-dllm", importance={"alpha": alpha, "site": site})
        assert torch.equal(alone.generate(prompts(2)).tokens, hybrid.generate(prompts(2)).tokens)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_eager_attention_gives_sdpa_s_tokens(name: str, mode: str, build: Any) -> None:
    rows = [prompts(1, length, seed=length)[0].tolist() for length in (12, 5)]
    eager = build(name, mode, attention="eager").generate(rows)
    assert torch.equal(eager.tokens, build(name, mode).generate(rows).tokens)


def test_sparse_that_keeps_all_is_dense(build: Any) -> None:
    sparse = build("llada-0", "es-dllm", cache={"name": "sparse", "keep": 1.0, "delay_step": 0})
    rows = [prompts(1, length, seed=length)[0].tolist() for length in (12, 5)]
    assert torch.equal(sparse.generate(rows).tokens, build("llada-0", "es-dllm").generate(rows).tokens)


def test_sparse_serves_a_canvas_that_is_all_block(build: Any) -> None:
    engine = build("llada-0", "dual-cache", cache={"name": "sparse", "delay_step": 1})
    assert engine.generate([[254] * 8], infill=True).committed == 8


def test_the_last_layer_of_a_suffix_step_is_narrow_and_gives_the_same_tokens(build: Any) -> None:
    watch = Watch()
    build("llada-0", "prefix-cache").generate(prompts(), observers=[watch])
    assert all(record.plan.narrow for record in watch.records if record.plan.window > record.plan.block)
    assert any(record.plan.window == 16 for record in watch.records)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA can tell a wait")
@pytest.mark.parametrize("mode", MODES)
def test_no_step_waits_for_the_device(mode: str, catalogue: Catalogue, build: Any) -> None:
    engine = build(load_model(CASES / "llada-0", device="cuda", catalogue=catalogue), mode)
    engine.generate(prompts())
    step = engine.step_function

    def strict(*arguments: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    strict.seconds_compiling = 0.0  # type: ignore[attr-defined]
    engine.step_function = strict
    engine.generate(prompts())


def test_sparse_serves_a_batch_of_one(build: Any) -> None:
    assert build("llada-0", "es-dllm", cache="sparse").generate(prompts(1)).committed == 24


def test_a_threshold_of_1_commits_one_position_a_step(build: Any) -> None:
    parallel = build("llada-0", "dual-cache-parallel", unmasking={"threshold": 1.0}).generate(prompts())
    assert parallel.forwards == 24
    assert torch.equal(parallel.tokens, build("llada-0", "dual-cache").generate(prompts()).tokens)


# --------------------------------------------------------------------------------------------------- every option


@given(
    gen_length=st.integers(1, 20),
    block_length=st.integers(1, 24),
    mode=st.sampled_from([*MODES, *(f"{mode}-parallel" for mode in MODES)]),
    rate=st.integers(1, 5),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    name=st.sampled_from(MODELS),
    delay_eos=st.booleans(),
    periods=st.tuples(st.integers(1, 9), st.integers(1, 9)),
)
@settings(max_examples=40, deadline=None)
def test_every_mask_is_decided_whatever_the_lengths(
    models: dict[str, Model],
    catalogue: Catalogue,
    gen_length: int,
    block_length: int,
    mode: str,
    rate: int,
    lengths: Sequence[int],
    name: str,
    delay_eos: bool,
    periods: tuple[int, int],
) -> None:
    over: dict[str, Any] = {
        "gen_length": gen_length,
        "block_length": block_length,
        "delay_eos": delay_eos,
        "early_stop": False,
    }
    if not mode.endswith("parallel"):
        over["unmasking"] = {"tokens_per_step": rate}
    if mode.startswith("es-dllm"):
        over["refresh"] = {"prompt_refresh": periods[0], "block_refresh": periods[1]}
    engine = Engine.build(models[name], catalogue.configure(mode, settings=over), catalogue)
    result: Generation = engine.generate([prompts(1, length, seed=length)[0].tolist() for length in lengths])
    assert result.committed == gen_length * len(lengths)
    assert 1 <= result.forwards <= gen_length + block_length
