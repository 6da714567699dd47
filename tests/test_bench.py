"""Benchmarks: what is counted is what is computed, all take turns, reports say what was measured. No test asserts a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from runs import CountingFlops, prompts
from torch import Tensor

from esdllm import Catalogue, Engine
from esdllm.checkpoints.loading import random_model
from esdllm.errors import ConfigError, InputError, UnavailableError
from esdllm.measure.benchmarking import (
    WORK,
    BenchContender,
    Peak,
    PeakMemory,
    Rate,
    Report,
    Setting,
    Timing,
    bench,
    compare,
    contenders_named,
    curve,
    geometry,
    geometry_names,
    measure_peak,
    quartiles,
    read_report,
    slope,
)
from esdllm.measure.benchmarking.bare import BareLoop, BareWeights
from esdllm.measure.benchmarking.clock import ClockedEngine, seconds_of
from esdllm.measure.benchmarking.memory import MemoryMeter, Waiting
from esdllm.measure.benchmarking.plots import plot_curve, plot_report
from esdllm.measure.benchmarking.profiling import profile
from esdllm.measure.benchmarking.runners import Sample
from esdllm.measure.benchmarking.running import decoded, turns
from esdllm.measure.cost import Cost, Costing, Roofline
from esdllm.plan import Layout
from esdllm.testing.models import tiny_model

pytestmark = pytest.mark.covers

Run = Callable[..., tuple[int, str, str]]
TINY = "tiny,layers=2,hidden=64,vocab=256"
SHORT = ["gen_length=12", "block_length=6"]
QUICK = ["--geometry", TINY, "--prompt-length", "9", "--gen-length", "12", "--block-length", "6", "--rounds", "2"]
SMALL_PEAK = Peak((Rate("made up", 2.0), Rate("better", 4.0)), bandwidth=1.0)


@pytest.fixture(scope="module")
def setting(catalogue: Catalogue) -> Setting:
    return Setting(TINY, geometry(TINY, catalogue), prompt_length=9, batch=2, device="cpu", threads=1)


@pytest.fixture(scope="module")
def report(setting: Setting, catalogue: Catalogue) -> Report:
    named = contenders_named(["vanilla", "es-dllm", "refresh.block_refresh=3", "bare"], catalogue, SHORT)
    return bench(setting, named, rounds=3, profiled=True, peak=lambda model: SMALL_PEAK, catalogue=catalogue)


# what is counted


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llada", "Dream"])
@pytest.mark.parametrize(
    ("preset", "sets"),
    [
        ("vanilla", []),
        ("prefix-cache", []),
        ("dual-cache", []),
        ("es-dllm", ["refresh.prompt_refresh=8", "refresh.block_refresh=3"]),
        ("es-dllm", ["importance.site=query"]),
        ("es-dllm", ["importance.site=key"]),
        ("es-dllm", ["cfg_scale=1.5"]),
        ("dual-cache", ["blocks=pruned", "blocks.window=3"]),
        ("vanilla", ["blocks=pruned", "blocks.window=3"]),
        ("es-dllm-parallel", ["blocks=own", "blocks.reach=5"]),
        ("es-dllm-parallel", []),
    ],
)
def test_counted_flops_are_those_that_torch_counts(
    family: str, preset: str, sets: list[str], catalogue: Catalogue
) -> None:
    config = catalogue.configure(preset, sets=["gen_length=18", "block_length=6", "attention=eager", *sets])
    engine = Engine.build(tiny_model(family), config, catalogue)
    counting = CountingFlops(engine.step_function)
    engine.step_function = counting
    engine.generate(prompts(rows=2, length=7) % 60)
    costing = Costing.of(engine.components, engine.model.spec, batch=2, length=25, itemsize=4)
    assert counting.found
    assert [flops for _, flops in counting.found] == [costing.step(plan).flops for plan, _ in counting.found]


def test_every_kind_of_step_is_counted(report: Report) -> None:
    kinds = {kind.kind for timing in report.timings for kind in timing.kinds}
    assert kinds == {"refresh", "skip"}
    for timing in report.timings:
        assert sum(kind.steps for kind in timing.kinds) == timing.forwards == 12
        total = sum(kind.steps * kind.flops for kind in timing.kinds)
        assert total == pytest.approx(timing.flops)


def test_the_bytes_hold_all_weights_but_the_embedding_once(catalogue: Catalogue) -> None:
    engine = Engine.build(tiny_model(), catalogue.configure("vanilla", sets=SHORT), catalogue)
    spec = engine.model.spec
    costing = Costing.of(engine.components, spec, 1, 20, 4, weights=100_000)
    plan = engine.planner(Layout.of(8, 12, 0)).forecast()[0].plan
    assert costing.step(plan).weights == 100_000 - 4 * spec.vocab * spec.hidden
    assert costing.step(plan).cache == 2 * 4 * 20 * spec.n_layers * spec.n_kv_heads * spec.head_dim


def test_a_prediction_is_the_longer_of_arithmetic_and_traffic() -> None:
    cost = Cost(linear=6 * 10**9, attention=10**9, head=10**9, weights=10**9, cache=0, activations=10**9)
    assert cost.seconds(Roofline(gflops=2.0)) == 4.0
    assert cost.seconds(Roofline(gflops=2.0, bandwidth=1.0)) == 4.0
    assert cost.seconds(Roofline(gflops=2.0, bandwidth=0.25)) == 8.0


def test_a_family_that_does_not_tell_its_feed_forward_cannot_be_counted(catalogue: Catalogue) -> None:
    engine = Engine.build(tiny_model(), catalogue.configure("vanilla", sets=SHORT), catalogue)
    spec = attrs.evolve(engine.model.spec, intermediate=0)
    with pytest.raises(UnavailableError, match=r"does not tell ModelSpec\.intermediate"):
        Costing.of(engine.components, spec, 1, 20, 4)


# who decodes


@pytest.mark.parametrize("family", ["llada", "Dream"])
@pytest.mark.parametrize("refresh", [(64, 16), (8, 3), (5, 2)])
def test_the_bare_loop_decodes_what_the_engine_decodes(
    family: str, refresh: tuple[int, int], catalogue: Catalogue
) -> None:
    prompt, block = refresh
    sets = ["gen_length=24", "block_length=8", f"refresh.prompt_refresh={prompt}", f"refresh.block_refresh={block}"]
    contender = contenders_named(["bare"], catalogue, sets)[0]
    model, given = tiny_model(family, seed=3), prompts(rows=2, length=7) % 60
    engine = ClockedEngine.build(model, contender.config, catalogue)
    assert isinstance(engine, ClockedEngine)
    tokens = engine.generate(given).tokens
    steps = [about for what, about, _ in engine.clock.marks if what == "step"]
    with torch.inference_mode():
        loop = BareLoop(
            model.spec, BareWeights.of(model.adapter), given, 24, steps[0].plan.scored, contender.config.delay_eos
        )
        assert torch.equal(loop.decode(steps), tokens)


def test_a_clock_changes_nothing_and_names_every_step(catalogue: Catalogue) -> None:
    model, config = (
        tiny_model(),
        catalogue.configure("es-dllm", sets=[*SHORT, "early_stop=false", "refresh.block_refresh=3"]),
    )
    clocked = ClockedEngine.build(model, config, catalogue)
    given: Tensor = prompts(length=9) % 60
    assert torch.equal(clocked.generate(given).tokens, Engine.build(model, config, catalogue).generate(given).tokens)
    assert isinstance(clocked, ClockedEngine)
    planned = clocked.planner(Layout.of(9, 12, 0)).forecast()
    clocked.generate(given)
    assert [step.plan for step in clocked.clock.steps()] == [step.plan for step in planned]


def test_a_profile_shares_out_the_time_of_each_kind_of_step(report: Report) -> None:
    for timing in report.timings:
        assert (timing.shares is None) == timing.bare
        for kind, shares in (timing.shares or {}).items():
            assert set(shares) == set(WORK)
            assert sum(shares.values()) == pytest.approx(1)
            assert (shares["scoring"] > 0) == kind.startswith("skip")
        if timing.shares:
            assert set(timing.shares) == {kind.name for kind in timing.kinds}


def test_a_profile_leaves_the_engine_as_it_was(catalogue: Catalogue) -> None:
    engine = ClockedEngine.build(tiny_model(), catalogue.configure("es-dllm", sets=SHORT), catalogue)
    assert isinstance(engine, ClockedEngine)
    components, model = engine.components, engine.model
    profile(engine, prompts(length=9) % 60)
    assert engine.components is components
    assert engine.model is model


# how it is measured


def test_all_take_turns_and_another_begins_each_round() -> None:
    assert list(turns(3, 4)) == [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2]


def test_every_contender_is_warmed_up_then_runs_once_a_round(setting: Setting, catalogue: Catalogue) -> None:
    told: list[str] = []
    named = contenders_named(["vanilla", "dual-cache"], catalogue, SHORT)
    found = bench(setting, named, rounds=2, peak=lambda model: None, catalogue=catalogue, progress=told.append)
    assert told == ["vanilla", "dual-cache", "vanilla", "dual-cache", "dual-cache", "vanilla"]
    assert [len(timing.seconds) for timing in found.timings] == [2, 2]
    assert found.peak is None


@pytest.mark.slow
def test_threads_are_as_before_afterwards(setting: Setting, catalogue: Catalogue) -> None:
    before = torch.get_num_threads()
    one = attrs.evolve(setting, threads=before + 1)
    bench(one, contenders_named(["vanilla"], catalogue, SHORT), rounds=1, peak=lambda model: None, catalogue=catalogue)
    assert torch.get_num_threads() == before


def test_a_spread_is_the_median_and_the_quartiles() -> None:
    assert attrs.astuple(quartiles([5.0, 1.0, 4.0, 2.0, 3.0])) == (3.0, 2.0, 4.0)
    assert attrs.astuple(quartiles([7.0])) == (7.0, 7.0, 7.0)


def test_a_speed_up_is_taken_round_by_round(report: Report) -> None:
    first = attrs.evolve(report.timings[0], seconds=(4.0, 8.0, 40.0), flops=100)
    other = attrs.evolve(report.timings[1], seconds=(2.0, 2.0, 10.0), flops=10)
    made = attrs.evolve(report, timings=(first, other))
    assert made.speedup(other).median == 4.0
    assert made.flops_ratio(other) == 10.0
    assert made.speedup(first).median == 1.0


def test_memory_that_is_held_for_a_while_is_seen() -> None:
    meter = MemoryMeter(torch.device("cpu"))
    held = torch.ones(1 << 24)
    del held
    found = meter.read()
    if found is None:
        pytest.skip("the system does not tell the peak")
    assert 0.9 * (1 << 26) <= found.bytes < 1 << 28  # pages of something else may have gone meanwhile


class Allocator:
    """What torch tells of two devices' memory, one of which is measured."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, allocated: int, peak: int, pools: Sequence[tuple[int, ...]]
    ) -> None:
        self.tell(allocated, peak, pools)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: self.allocated)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: self.peak)
        monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: self.segments)

    def tell(self, allocated: int, peak: int, pools: Sequence[tuple[int, ...]]) -> None:
        """Pools: device, number of the pool (0 is everybody's), what it has, what of that tensors lie in."""
        self.allocated, self.peak = allocated, peak
        self.segments = [
            {"device": device, "segment_pool_id": (0, number), "total_size": total, "allocated_size": used}
            for device, number, total, used in pools
        ]


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_what_cuda_graphs_set_aside_counts_as_held(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another engine's graphs, another device's, and what is free for everybody do not count."""
    others = [(1, 0, 1000, 90), (1, 1, 50, 10), (0, 2, 700, 0)]
    allocator = Allocator(monkeypatch, 100, 100, others)
    meter = MemoryMeter(torch.device(device))
    allocator.tell(140, 180, [*others, (1, 3, 300, 20)])
    found = meter.read()
    assert found is not None
    assert found.bytes == (140 - 100) + (300 - 20)


def test_a_step_that_took_more_than_what_is_held_afterwards_is_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = Allocator(monkeypatch, 100, 100, [])
    meter = MemoryMeter(torch.device("cuda"))
    allocator.tell(140, 900, [(1, 3, 300, 20)])
    found = meter.read()
    assert found is not None
    assert found.bytes == 800


def test_a_contender_that_keeps_its_memory_is_measured_when_it_takes_it() -> None:
    """Not in later runs, which find it there; and what is freed between runs is measured in every run but the first."""

    def told(keeps: bool) -> list[bool]:
        one = Kept(keeps)
        return [decoded(one, lambda name: None, warming=warming).memory is not None for warming in (True, False)]  # type: ignore[arg-type]

    assert told(keeps=True) == [True, True]
    assert told(keeps=False) == [False, True]


@attrs.define
class Kept:
    """A runner that does nothing."""

    keeps: bool
    device: torch.device = torch.device("cpu")
    contender: Any = SimpleNamespace(name="kept")

    def run(self) -> Sample:
        return Sample(1.0, 0.0, 1, 1, 1, ())

    def warm(self) -> None:
        pass

    def rest(self) -> None:
        pass


def test_seconds_are_taken_on_the_device_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[str] = []

    class Event:
        def record(self) -> None:
            assert current == ["cuda:1"]

        def elapsed_time(self, other: Event) -> float:
            return 2000.0

    @contextmanager
    def entering(device: torch.device) -> Iterator[None]:
        current.append(str(device))
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event())
    monkeypatch.setattr(torch.cuda, "device", entering)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert seconds_of(lambda: None, torch.device("cuda:1")) == 2.0


def test_time_without_a_processor_is_a_share_of_the_time() -> None:
    waiting = Waiting()
    torch.ones(1 << 20).sort()
    found = waiting.read()
    if found is None:
        pytest.skip("the system does not tell")
    assert 0 <= found <= 1


def test_a_peak_names_its_shapes_and_the_best_counts() -> None:
    model = tiny_model()
    found = measure_peak(torch.device("cpu"), torch.float32, model.adapter, shapes=((8, 16, 32),), read=1 << 16)
    assert [rate.what for rate in found.rates[:1]] == ["(8, 16) x (16, 32)"]
    assert len(found.rates) == 3
    assert found.roofline.gflops == max(rate.gflops for rate in found.rates)


# what it is of


def test_words_with_an_equals_sign_belong_to_the_contender_before(catalogue: Catalogue) -> None:
    found = contenders_named(
        ["vanilla", "es-dllm", "refresh.block_refresh=4", "importance.alpha=0.7"], catalogue, SHORT
    )
    assert [contender.name for contender in found] == [
        "vanilla",
        "es-dllm refresh.block_refresh=4 importance.alpha=0.7",
    ]
    assert found[1].config.refresh.options["block_refresh"] == 4
    assert contenders_named(["es-dllm importance.alpha=0.7"], catalogue)[0].config.importance.options == {"alpha": 0.7}


def test_decoding_goes_to_the_end_unless_told_otherwise(catalogue: Catalogue) -> None:
    whole, early = contenders_named(["vanilla", "es-dllm", "early_stop=true"], catalogue)
    assert not whole.config.early_stop
    assert early.config.early_stop


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gen_length=4", "vanilla"], "'gen_length=4' before any contender; name a preset first"),
        (["vanilla", "vanilla"], "two contenders are named 'vanilla'"),
        (["bare", "importance=random"], "computes es-dllm's own importance only"),
        (["bare", "compile=true"], "own compile only"),
        (["es-dlm"], "did you mean 'es-dllm'"),
    ],
)
def test_contenders_that_cannot_be_are_refused(words: list[str], message: str, catalogue: Catalogue) -> None:
    with pytest.raises((ConfigError, InputError), match=message):
        contenders_named(words, catalogue)


@pytest.mark.slow
def test_the_bare_loop_computes_quantised_weights_and_refuses_a_model_that_it_does_not_know(
    setting: Setting, catalogue: Catalogue
) -> None:
    named = contenders_named(["es-dllm", "bare"], catalogue, SHORT)
    found = bench(attrs.evolve(setting, quantize="int8-weight-only"), named, rounds=1, catalogue=catalogue)
    assert found.timings[0].answer_tokens == found.timings[1].answer_tokens
    with pytest.raises(
        InputError, match="the bare loop computes LLaDA and Dream on one device only; object is another"
    ):
        BareWeights.of(object())


def test_sizes_go_over_a_geometry_and_keep_its_proportions(catalogue: Catalogue) -> None:
    small = random_model(geometry("small,hidden=256,layers=3", catalogue), "meta", catalogue=catalogue).spec
    assert (small.hidden, small.n_layers, small.n_heads, small.head_dim, small.intermediate) == (256, 3, 2, 128, 768)
    dream = random_model(geometry("dream-7b,hidden=1792", catalogue), "meta", catalogue=catalogue).spec
    assert (dream.n_heads, dream.n_kv_heads, dream.intermediate, dream.logit_shift) == (14, 2, 9472, 1)
    mixed = random_model(
        geometry("llada2-mini,hidden=256,experts=16,layers=2", catalogue), "meta", catalogue=catalogue
    ).spec
    assert (mixed.intermediate, mixed.experts.experts, mixed.experts.intermediate, mixed.experts.layers) == (
        640,
        16,
        64,
        (1,),
    )
    longer = geometry("llada-moe-7b,layers=20,expert=256", catalogue)
    assert (longer["moe_layer_freq"], longer["expert_intermediate_size"]) == ([1] * 20, 256)
    alone = geometry("vocab=1000", catalogue)
    assert (alone["d_model"], alone["vocab_size"], alone["mask_token_id"]) == (1024, 1000, 999)


def test_every_geometry_has_a_name_and_can_be_made(catalogue: Catalogue) -> None:
    names = geometry_names(catalogue)
    assert {"tiny", "small", "medium", "llada-8b", "dream-7b"} <= set(names)
    for name in names:
        assert random_model(geometry(name, catalogue), "meta", catalogue=catalogue).spec.inside(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("smal", "no geometry 'smal'; did you mean 'small'"),
        ("small,depth=4", "a geometry has no size 'depth'; did you mean 'expert'"),
        ("small,layers=none", "the geometry's layers is 'none'; write a whole number above 0"),
        (
            "small,experts=4",
            "this geometry has no experts; it has hidden, layers, heads, kv_heads, intermediate, vocab",
        ),
        ("small,hidden=100,heads=3", "hidden=100 does not divide by heads=3"),
    ],
)
def test_a_geometry_that_cannot_be_is_refused(text: str, message: str, catalogue: Catalogue) -> None:
    with pytest.raises(InputError, match=message):
        geometry(text, catalogue)


def test_prompts_are_the_same_again_and_hold_no_mask(setting: Setting, catalogue: Catalogue) -> None:
    model = setting.load(catalogue)
    assert torch.equal(setting.prompts(model), setting.prompts(model))
    assert setting.prompts(model).shape == (2, 9)
    many = attrs.evolve(setting, prompt_length=4000).prompts(model)
    assert not (many == model.spec.mask_id).any()
    assert many.unique().numel() == model.spec.vocab - 1


# reports


def test_a_report_comes_back_from_json(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report.to_dict()))
    assert read_report(path).to_dict() == json.loads(path.read_text())


def test_a_report_of_itself_has_not_changed(report: Report) -> None:
    found = compare(report, report)
    assert not found.environment
    assert [change.name for change in found.changes] == [timing.name for timing in report.timings]
    for change in found.changes:
        assert change.seconds.low <= 1 <= change.seconds.high
        assert set(change.kinds.values()) == {1.0}


def _slower(timing: Timing, times: float) -> Timing:
    return attrs.evolve(timing, seconds=tuple(times * x for x in timing.seconds), memory=PeakMemory(300, "as told"))


def test_a_comparison_is_the_second_over_the_first(report: Report) -> None:
    even = [attrs.evolve(one, seconds=(2.0, 2.0), memory=PeakMemory(100, "as told")) for one in report.timings]
    before = attrs.evolve(report, timings=tuple(even))
    after = attrs.evolve(
        before,
        timings=tuple(_slower(one, 1.5) for one in even),
        environment={**before.environment, "torch": "9.9"},
    )
    found = compare(before, after)
    assert found.environment == {"torch": (torch.__version__, "9.9")}
    assert [change.seconds.median for change in found.changes] == [1.5, 1.5, 1.5]
    assert [change.memory for change in found.changes] == [3.0, 3.0, 3.0]


def test_reports_that_did_not_measure_the_same_are_refused_and_all_differences_named(report: Report) -> None:
    config = {**report.first.config, "gen_length": 99}
    other = attrs.evolve(
        report,
        setting=attrs.evolve(report.setting, batch=7, dtype="float32"),
        timings=(attrs.evolve(report.first, config=config), *report.timings[1:]),
    )
    with pytest.raises(InputError) as caught:
        compare(report, other)
    for told in (
        "did not measure the same",
        "batch 2 against 7",
        "dtype None against float32",
        "vanilla's gen_length 12",
    ):
        assert told in str(caught.value)
    with pytest.raises(InputError, match="contenders"):
        compare(report, attrs.evolve(report, timings=report.timings[:1]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "holds a list"),
        ('{"format": "other"}', "the format is 'other', not 'esdllm-bench-1'"),
        ('{"format": "esdllm-bench-1"}', "missing or wrong"),
    ],
)
def test_a_file_that_is_no_report_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_report(path)
    with pytest.raises(InputError, match="cannot read"):
        read_report(tmp_path / "none.json")


# curves


def test_a_slope_is_the_exponent() -> None:
    sizes = [64, 128, 512, 1024]
    assert slope(sizes, [3.0 * x**2 for x in sizes]) == pytest.approx(2)
    assert slope(sizes, [5.0] * 4) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="two different sizes"):
        slope([8, 8], [1.0, 2.0])


def _measured(setting: Setting, named: list[BenchContender], catalogue: Catalogue) -> Report:
    return bench(setting, named, rounds=1, peak=lambda model: None, catalogue=catalogue)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("over", "sizes"), [("length", (32, 64)), ("batch", (1, 3)), ("layers", (2, 3)), ("vocab", (128, 512))]
)
def test_a_curve_grows_with_what_is_asked_for(
    over: Any, sizes: tuple[int, int], setting: Setting, catalogue: Catalogue, tmp_path: Path
) -> None:
    named = contenders_named(["vanilla"], catalogue, SHORT)
    found = curve(setting, named, over, sizes, lambda one: _measured(one, named, catalogue))
    specs = [one.environment["spec"] for one in found.reports]
    grown = {
        "length": [one.setting.prompt_length + 12 for one in found.reports],
        "batch": [one.setting.batch for one in found.reports],
        "layers": [spec["n_layers"] for spec in specs],
        "vocab": [spec["vocab"] for spec in specs],
    }
    assert [name for name, values in grown.items() if values[0] != values[1]] == [over]
    assert grown[over] == list(sizes)
    assert found.flops_slope(0) > 0
    if over == "batch":
        assert found.flops_slope(0) == pytest.approx(1)
    plot_curve(found, tmp_path / "curve.svg")
    assert "slope" in (tmp_path / "curve.svg").read_text()


@pytest.mark.parametrize(
    ("over", "sizes", "message"),
    [
        ("batch", [4], "give at least two different ones"),
        ("length", [8, 64], "a canvas of 8 has no room for a prompt before gen_length = 12"),
    ],
)
def test_sizes_that_make_no_curve_are_refused_before_the_work(
    over: Any, sizes: list[int], message: str, setting: Setting, catalogue: Catalogue
) -> None:
    def never(one: Setting) -> Report:
        raise AssertionError("measured")

    named = contenders_named(["vanilla"], catalogue, SHORT)
    with pytest.raises(InputError, match=message):
        curve(setting, named, over, sizes, never)
    with pytest.raises(InputError, match="a checkpoint has the layers that it has"):
        curve(Setting("tiny-llada"), named, "layers", [2, 4], never)


# the command


def test_the_command_prints_every_contender_and_that_weights_are_random(run: Run) -> None:
    code, out, _ = run("bench", *QUICK, "--no-peak", "vanilla", "es-dllm", "bare", "--breakdown")
    assert code == 0
    assert "random weights" in out
    for told in ("vanilla", "es-dllm", "bare", "skip, block", "between two steps", "bookkeeping"):
        assert told in out
    assert max(map(len, out.splitlines()[2:])) <= 120


def test_the_command_writes_json_and_compares_it(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("bench", "run", *QUICK, "--no-peak", "vanilla", "dual-cache", "--json")
    assert code == 0
    (tmp_path / "a.json").write_text(out)
    told = json.loads(out)
    assert [timing["name"] for timing in told["timings"]] == ["vanilla", "dual-cache"]
    assert told["timings"][1]["derived"]["flops_ratio"] > 1
    code, out, _ = run("bench", "compare", str(tmp_path / "a.json"), str(tmp_path / "a.json"))
    assert code == 0
    assert "dual-cache" in out


def test_a_checkpoint_can_be_measured(run: Run) -> None:
    code, out, _ = run(
        "bench",
        "-m",
        "tiny-llada",
        "--prompt-length",
        "9",
        "--gen-length",
        "4",
        "--rounds",
        "1",
        "--no-peak",
        "vanilla",
    )
    assert code == 0
    assert out.startswith("tiny-llada: prompt 9")
    assert "random weights" not in out


@pytest.mark.slow
def test_fresh_processes_measure_the_same_work(setting: Setting, run: Run) -> None:
    code, out, _ = run("bench", *QUICK[:-1], "1", "--no-peak", "es-dllm", "--fresh", "--json")
    assert code == 0
    told = Report.from_dict(json.loads(out))
    code, out, _ = run("bench", *QUICK[:-1], "1", "--no-peak", "es-dllm", "--json")
    same = Report.from_dict(json.loads(out))
    assert (told.fresh, same.fresh) == (True, False)
    assert told.first.flops == same.first.flops
    assert [kind.steps for kind in told.first.kinds] == [kind.steps for kind in same.first.kinds]


def test_the_curve_command_prints_slopes(run: Run) -> None:
    code, out, _ = run("bench", "curve", "--over", "batch", "1", "2", *QUICK[:-2], "--rounds", "1", "vanilla")
    assert code == 0
    assert "slope" in out
    assert "vanilla, ms per forward" in out


def test_a_plot_is_drawn(report: Report, tmp_path: Path) -> None:
    plot_report(report, tmp_path / "bench.svg")
    assert "tokens decided per second" in (tmp_path / "bench.svg").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench", "-m", "tiny-llada", "--geometry", "tiny"], "are two models; give one"),
        (["bench", "--geometry", "huge"], "no geometry 'huge'"),
        (["bench", "--plot", "a.gif"], "let it end in"),
        (["bench", "vanilla", "gen_lenght=4"], "unknown setting 'gen_lenght'"),
        (["bench", "--prompt-length", "5000", "vanilla"], "exceed the model's context of 4096"),
        (
            ["bench", "curve", "--over", "depth", "1", "2"],
            "--over depth; did you mean 'length'? known: batch, layers, length, vocab",
        ),
        (["bench", "compare", "no.json", "no.json"], "cannot read no.json"),
        (["explain", "--peak-gbs", "4"], "--peak-gbs alone predicts no time"),
        (["explain", "--peak-gflops", "-1"], "give a number above 0"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    run: Run, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err


def test_explain_predicts_what_bench_counts(report: Report, run: Run) -> None:
    words = ["--geometry", TINY, "--prompt-length", "9", "--batch", "2", "--gen-length", "12", "--block-length", "6"]
    code, out, _ = run(
        "explain", "--preset", "es-dllm", *words, "-s", "refresh.block_refresh=3", "--json", "--peak-gflops", "2"
    )
    assert code == 0
    told, counted = json.loads(out)["cost"], report.timings[1]
    assert sum(kind["steps"] * kind["flops"] for kind in told["kinds"]) == pytest.approx(counted.flops)
    for kind in told["kinds"]:
        assert kind["seconds"] == pytest.approx(kind["flops"] / 2e9)
    assert "GB moved" in run("explain", "--preset", "es-dllm", *words)[1]
