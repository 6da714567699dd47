"""Laws of the runtime: what a generation may depend on, and what it may not do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from helpers import CASES
from runs import MODELS, MODES, SHALLOW, Around, Watch, compiled, prompts
from torch.utils._python_dispatch import TorchDispatchMode

from esdllm import Catalogue, ConfigError, Model, load_model

# --------------------------------------------------------------------------------------- what the step may not do


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", MODES)
def test_a_whole_generation_reads_nothing_from_the_device(
    name: str, mode: str, shape_only: dict[str, Model], build: Any
) -> None:
    result = build(shape_only[name], mode).generate(prompts(2))
    assert result.tokens.is_meta
    assert result.forwards == 24


@pytest.mark.slow
@pytest.mark.parametrize("over", [{"cfg_scale": 1.0}, {"cache": "sparse"}, {"importance": {"site": "query"}}])
def test_no_option_reads_the_device(over: dict[str, Any], shape_only: dict[str, Model], build: Any) -> None:
    assert build(shape_only["llada-0"], "es-dllm", **over).generate(prompts()).forwards == 24


def test_an_adaptive_run_does_read_the_device(shape_only: dict[str, Model], build: Any) -> None:
    """So the meta device really tells."""
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        build(shape_only["llada-0"], "es-dllm-parallel").generate(prompts())


PLUGIN_CODE = ("pluggy", "esdllm.plugins.loader", "esdllm.plugins.catalogue", "importlib.metadata")
"""modules none of whose functions runs while a generation does"""


def plugin_calls(work: Callable[[], object]) -> set[str]:
    """Return the functions of plugins' machinery, and the hooks, that run while `work` does, however they are called."""
    called: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        module, name = str(frame.f_globals.get("__name__")), frame.f_code.co_name
        if event == "call" and (
            name.startswith("esdllm_") or f"{module}.".startswith(tuple(f"{x}." for x in PLUGIN_CODE))
        ):
            called.add(f"{module}.{name}")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return called


@pytest.mark.parametrize("mode", ["es-dllm", "es-dllm-parallel"])
def test_no_hook_is_called_while_generating(mode: str, build: Any) -> None:
    engine = build("llada-0", mode)
    assert plugin_calls(lambda: engine.generate(prompts())) == set()


def test_building_an_engine_looks_names_up_and_loading_a_catalogue_calls_hooks(build: Any) -> None:
    """So the law above really listens."""
    assert "esdllm.plugins.catalogue.build" in plugin_calls(lambda: build("llada-0", "es-dllm"))
    assert any(name.endswith(".esdllm_presets") for name in plugin_calls(Catalogue.load))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode", "over"),
    [
        ("llada-shallow", "vanilla", {}),
        ("llada-shallow", "prefix-cache", {}),
        ("dream-shallow", "dual-cache", {}),
        ("llada-shallow", "es-dllm", {}),
        ("dream-shallow", "es-dllm", {}),
        ("llada-shallow", "es-dllm", {"importance": {"site": "key"}}),
        ("llada-shallow", "es-dllm", {"cfg_scale": 1.5}),
        ("llada-shallow", "es-dllm", {"cache": "sparse"}),
        ("llada-shallow", "es-dllm", {"sampler": {"temperature": 0.7, "top_k": 20, "top_p": 0.9}}),
    ],
)
def test_the_compiled_step_is_one_graph_a_plan_with_eager_s_tokens(
    name: str, mode: str, over: dict[str, Any], build: Any
) -> None:
    engine = build(name, mode, gen_length=16, **over)
    eager = engine.generate(prompts(2))
    found, graphs, plans = compiled(engine, prompts(2))
    assert torch.equal(found.tokens, eager.tokens)
    assert graphs == len(plans)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHALLOW)
def test_another_backend_of_torch_compile_gives_eager_s_tokens(name: str, build: Any) -> None:
    """One that needs no C++ compiler, and lowers the step to the operators that inductor sees."""
    torch._dynamo.reset()
    eager = build(name, "es-dllm", gen_length=8).generate(prompts(2))
    lowered = build(name, "es-dllm", gen_length=8, compile=True, compile_backend="aot_eager").generate(prompts(2))
    assert torch.equal(lowered.tokens, eager.tokens)
    assert lowered.compile_seconds > 0


def test_a_backend_that_torch_does_not_know_is_refused_before_anything_is_made(build: Any) -> None:
    with pytest.raises(ConfigError, match="no backend 'aot-eager'; did you mean 'aot_eager'"):
        build("llada-0", "es-dllm", compile=True, compile_backend="aot-eager")
    build("llada-0", "es-dllm", compile_backend="aot-eager")  # nothing is compiled


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("llada-shallow", 2),
        *(
            pytest.param(*case, marks=pytest.mark.full)
            for case in [("dream-shallow", 2), ("llada-0", 8), ("dream-0", 8)]
        ),
    ],
)
def test_the_inductor_s_step_gives_eager_s_tokens(name: str, steps: int, build: Any) -> None:
    """A step that refreshes and one that skips; with more steps, those of the other plans."""
    torch._dynamo.reset()
    eager = build(name, "es-dllm", gen_length=steps).generate(prompts(2))
    compiled = build(name, "es-dllm", gen_length=steps, compile=True).generate(prompts(2))
    assert torch.equal(compiled.tokens, eager.tokens)
    assert compiled.compile_seconds > 0 == eager.compile_seconds


def test_an_absent_observer_costs_nothing_and_a_present_one_sees_every_step(build: Any) -> None:
    watch = Watch()
    result = build("llada-0", "es-dllm").generate(prompts(), observers=[watch])
    assert len(watch.records) == result.steps == 24
    assert watch.ended
    assert watch.records[0].moment.step == 0
    assert torch.equal(watch.tokens[-1], result.tokens)


class LeastOfIntegers(TorchDispatchMode):
    """Notes each operator that takes the least of integers along a dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if str(func) in {"aten.amin.default", "aten.argmin.default", "aten.min.dim"} and args[0].dtype == torch.int64:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("unmasking", ("top-k", "threshold", "factor", "entropy-bound", "klass", "credit", "longest-prefix", "wino")),
        ("unmasking", ("prophet", "time-schedule", "linear-schedule", "lowest-entropy", "editing")),
        ("importance", ("hybrid", "confidence", "variation", "random", "entropy")),
        ("blocks", ("fixed", "sliding", "own", "pruned")),
        ("cache", ("dense", "sparse", "int8")),
        ("skip", ("by-depth", "decay", "adaptive", "budget")),
    ],
)
def test_no_step_takes_the_least_of_integers(kind: str, names: tuple[str, ...], build: Any) -> None:
    """Compiled for AVX2, torch 2.13's inductor gets it wrong: INT64_MAX of rows of eight."""
    with LeastOfIntegers() as watch:
        for name in names:
            build("llada-0", "es-dllm", gen_length=8, **{kind: name}).generate(prompts(2))
        build("llada-0", "es-dllm", gen_length=8, delay_eos=True, cfg_scale=1.0).generate(prompts(2))
    assert watch.found == []


# ------------------------------------------------------------------------------------------- what a row depends on


def test_a_second_run_is_the_first(build: Any) -> None:
    engine = build("llada-0", "es-dllm", cache="sparse")
    first = engine.generate(prompts(2))
    engine.generate(prompts(2, seed=5))
    assert torch.equal(engine.generate(prompts(2)).tokens, first.tokens)


# ----------------------------------------------------------------------------------------------- equal by definition


@pytest.mark.slow
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

    engine.step_function = Around(strict)
    engine.generate(prompts())


def test_sparse_serves_a_batch_of_one(build: Any) -> None:
    assert build("llada-0", "es-dllm", cache="sparse").generate(prompts(1)).committed == 24


def test_a_threshold_of_1_commits_one_position_a_step(build: Any) -> None:
    parallel = build("llada-0", "dual-cache-parallel", unmasking={"threshold": 1.0}).generate(prompts())
    assert parallel.forwards == 24
    assert torch.equal(parallel.tokens, build("llada-0", "dual-cache").generate(prompts()).tokens)


def test_observers_are_told_the_padding_of_each_row(build: Any) -> None:
    """Where steps skip there is a column of padding before the longest row, too."""
    even, vanilla, rows = Watch(), Watch(), [[7] * 5, [7] * 9, [7] * 2]
    skipping, engine = Watch(), build("llada-0", "es-dllm")
    engine.generate([[7] * 5, [7] * 5], observers=[even])
    engine.generate(rows, observers=[skipping])
    build("llada-0", "vanilla").generate(rows, observers=[vanilla])
    assert {record.padding for record in even.records} == {None}
    assert {record.padding for record in skipping.records} == {(5, 1, 8)}
    assert {record.padding for record in vanilla.records} == {(4, 0, 7)}
    for watch, ahead in ((skipping, (5, 1, 8)), (vanilla, (4, 0, 7))):
        for row, tokens, before in zip(rows, watch.tokens[0].tolist(), ahead, strict=True):
            assert tokens[before : before + len(row)] == row
