"""Which kernel of linear layers is taken where none is named: by what goes, and that the same machine takes the same again."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from helpers import CASES
from hypothesis import given
from hypothesis import strategies as st
from lookalikes import llada_config
from processor import CPU, needs_bfloat16, needs_fbgemm
from projects import Run

from esdllm import Catalogue, ComputeChoice, Engine, LoadPlan, PluginError, load_model
from esdllm.checkpoints.loading import describe_weights, geometries
from esdllm.testing import random_model
from esdllm_models.families.llada import LladaFamily
from esdllm_models.linear import choosing, timing
from esdllm_models.linear.choosing import choose
from esdllm_models.linear.kept import Measurements, measurement_key
from esdllm_models.linear.kernels import COMPUTES
from esdllm_models.linear.packed import packs
from esdllm_models.linear.timing import Matrix, Seconds, measured

HEAD = Matrix(32768, 1024, 1, few_rows=True)
WIDE = (Matrix(6144, 1024, 16), Matrix(1024, 1024, 16), HEAD)
LARGE = 1 << 27
BFLOAT16, FLOAT32 = LoadPlan(torch.bfloat16, CPU), LoadPlan(torch.float32, CPU)
FAST, SLOW = Seconds(1.0, 10.0), Seconds(2.0, 20.0)


def times(monkeypatch: pytest.MonkeyPatch, found: Mapping[str, Seconds]) -> list[tuple[str, ...]]:
    """Let kernels take as long as told, 2 and 20 seconds where nothing is; return a list of what is measured."""
    asked: list[tuple[str, ...]] = []

    def told(matrices: object, names: list[str], dtype: torch.dtype) -> dict[str, Seconds]:
        asked.append(tuple(names))
        return {name: found.get(name, SLOW) for name in names}

    monkeypatch.setattr(choosing, "measured", told)
    return asked


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder of its own for what is kept."""
    monkeypatch.setenv("ESDLLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "kernels"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fastest", COMPUTES)
def test_the_fastest_is_chosen_of_those_that_serve_and_round_no_more_than_the_dtype(
    fastest: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    times(monkeypatch, {fastest: FAST})
    choice, plan = choose(WIDE, LARGE, LoadPlan(dtype, CPU), True), LoadPlan(dtype, CPU)
    why = {one.name: one.problems for one in choice.kernels}
    serves = not COMPUTES[fastest].problems(CPU, dtype)
    exact = (fastest, dtype) != ("fp16", torch.float32)
    assert (choice.compute == fastest) is ((serves and exact) or fastest == choosing._by_rule(CPU, plan.dtype))
    assert why["fp16"] != () or dtype != torch.float32
    assert all(bool(one.problems) is (one.few is None) for one in choice.kernels)


def test_a_float32_checkpoint_is_never_rounded_to_float16(monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, {"fp16": Seconds(1e-9, 1e-9)})
    choice = choose(WIDE, LARGE, FLOAT32, True)
    assert choice.compute in ("plain", "pieces")
    assert "it rounds to 0.001, float32 to 1e-07" in {one.name: one for one in choice.kernels}["fp16"].problems


@needs_fbgemm
def test_what_filling_up_would_make_much_larger_than_its_weights_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, {"fp16": Seconds(1e-9, 1e-9)})
    narrow = choose([Matrix(1 << 20, 160, 16)], LARGE, BFLOAT16, True)
    assert narrow.compute != "fp16"
    assert {one.name: one for one in narrow.kernels}["fp16"].problems == (
        "it would take 3.2 times the weights' bytes, for layers this narrow",
    )
    assert choose([Matrix(1 << 20, 448, 16)], LARGE, BFLOAT16, True).compute == "fp16"


def test_who_gains_little_over_the_rule_s_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"plain": Seconds(1.0, 10.0), "pieces": Seconds(0.92, 9.2)}
    times(monkeypatch, found)
    assert choose(WIDE, LARGE, FLOAT32, True).compute == "plain"
    found["pieces"] = Seconds(0.9, 9.0)
    assert choose(WIDE[:1], LARGE, FLOAT32, True).compute == "pieces"


def test_few_positions_count_as_often_as_a_run_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, {"plain": Seconds(1.0, 5.0), "pieces": Seconds(0.6, 9.0)})
    assert choose(WIDE, LARGE, FLOAT32, True).compute == "pieces"  # 18 to 20
    times(monkeypatch, {"plain": Seconds(1.0, 5.0), "pieces": Seconds(0.9, 9.0)})
    assert choose(WIDE[:1], LARGE, FLOAT32, True).compute == "plain"  # 22.5 to 20


def test_who_was_too_slow_with_few_to_be_tried_with_many_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, {"plain": Seconds(9.0, None), "pieces": Seconds(1.0, 90.0)})
    assert choose(WIDE, LARGE, FLOAT32, True).compute == "pieces"


def test_a_small_model_goes_by_rule_and_measures_nothing(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    asked = times(monkeypatch, {"pieces": FAST})
    choice = choose(WIDE, choosing.SMALL - 1, FLOAT32, True)
    assert (choice.compute, choice.reason) == ("plain", "by rule, as for all small models")
    assert not asked
    assert not home.exists()
    assert choose(WIDE, choosing.SMALL, FLOAT32, True).compute == "pieces"


@pytest.mark.processor
def test_by_rule_bfloat16_is_multiplied_by_what_the_processor_has_for_it() -> None:
    expected = "packed" if packs(CPU, torch.bfloat16) else "plain"
    assert choose(WIDE, 1, BFLOAT16, True).compute == expected
    assert choose(WIDE, 1, LoadPlan(torch.float16, CPU), True).compute == "plain"


def test_shipped_and_recorded_checkpoints_stay_as_they_were_in_float32(catalogue: Catalogue) -> None:
    for name in ("tiny-llada", "tiny-dream", "tiny-sdar", CASES / "llada-0", CASES / "dream-0"):
        assert describe_weights(name, "float32", None, catalogue).compute == "plain"


def test_elsewhere_than_on_a_cpu_and_on_several_devices_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, meta = times(monkeypatch, {}), torch.device("meta")
    assert choose(WIDE, LARGE, LoadPlan(torch.bfloat16, meta), True).compute == "plain"
    assert choose(WIDE, LARGE, LoadPlan(torch.bfloat16, CPU, head=meta), True).compute is None
    assert not asked


def test_what_was_measured_is_kept_and_not_measured_again(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    asked = times(monkeypatch, {"pieces": FAST})
    first = choose(WIDE, LARGE, FLOAT32, True)
    times(monkeypatch, {"plain": FAST})
    again = choose(WIDE[::-1], LARGE, FLOAT32, True)
    assert again == first
    assert asked == [("plain", "pieces")]
    (file,) = home.iterdir()
    assert first.reason == f"measured with 16 and 256 positions, kept in {file}"


def test_who_only_looks_takes_what_is_kept_and_else_the_rule(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    asked = times(monkeypatch, {"pieces": FAST})
    assert choose(WIDE, LARGE, FLOAT32, False).compute == "plain"
    assert not asked
    assert not home.exists()
    choose(WIDE, LARGE, FLOAT32, True)
    assert choose(WIDE, LARGE, FLOAT32, False).compute == "pieces"


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(torch, "__version__", "99.0"),
        lambda patch: patch.setattr(torch, "get_num_threads", lambda: 97),
        lambda patch: patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER"),
        lambda patch: patch.setattr("esdllm_models.linear.kept.multiplies_bfloat16", lambda: "unknown"),
        lambda patch: patch.setattr("esdllm_models.linear.kept._processor", lambda: "another"),
        lambda patch: patch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41"),
        lambda patch: patch.setenv("ATEN_CPU_CAPABILITY", "default"),
        lambda patch: patch.setenv("MKL_ENABLE_INSTRUCTIONS", "SSE4_2"),
    ],
    ids=["torch", "threads", "capability", "bfloat16", "processor", "onednn", "aten", "mkl"],
)
def test_another_torch_or_processor_or_what_hides_of_it_is_measured_anew_and_keeps_both(
    change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    times(monkeypatch, {"pieces": FAST})
    choose(WIDE, LARGE, FLOAT32, True)
    times(monkeypatch, {"plain": FAST})
    with monkeypatch.context() as patch:
        change(patch)
        assert choose(WIDE, LARGE, FLOAT32, True).compute == "plain"
    assert choose(WIDE, LARGE, FLOAT32, True).compute == "pieces"
    assert len(list(home.iterdir())) == 2


def test_other_shapes_and_dtypes_are_measured_for_themselves(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    asked = times(monkeypatch, {})
    for matrices in (
        WIDE,
        WIDE[:2],
        (*WIDE[:2], attrs.evolve(HEAD, outputs=9)),
        (*WIDE[:2], attrs.evolve(HEAD, times=2)),
    ):
        choose(matrices, LARGE, FLOAT32, True)
    choose(WIDE, LARGE, LoadPlan(torch.float16, CPU), True)
    assert len(asked) == len(list(home.iterdir())) == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "\x00\xff" * 20,
        lambda text: "[" * 100_000,
        lambda text: "null",
        lambda text: "[1, 2]",
        lambda text: json.dumps({**json.loads(text), "key": {}}),
        lambda text: json.dumps({**json.loads(text), "seconds": {"plain": [1.0, 1.0]}}),
        lambda text: text.replace("1.0", "-1.0"),
        lambda text: text.replace("1.0", "NaN"),
        lambda text: text.replace("1.0", "Infinity"),
        lambda text: text.replace("1.0", '"fast"'),
        lambda text: text.replace("1.0", "true"),
        lambda text: text.replace("10.0", "1, 10.0"),
    ],
)
def test_a_damaged_file_is_measured_anew_and_replaced(
    damage: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    times(monkeypatch, {"plain": FAST})
    choose(WIDE, LARGE, FLOAT32, True)
    (file,) = home.iterdir()
    file.write_text(damage(file.read_text(encoding="utf-8")), encoding="latin-1")
    asked = times(monkeypatch, {"pieces": FAST})
    assert choose(WIDE, LARGE, FLOAT32, True).compute == "pieces"
    assert choose(WIDE, LARGE, FLOAT32, True).compute == "pieces"
    assert len(asked) == 1
    assert list(home.iterdir()) == [file]


@pytest.mark.parametrize("place", ["a file", "read only"])
def test_a_folder_that_cannot_be_written_is_told_and_the_choice_holds_all_the_same(
    place: str, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    if place == "a file":
        home.parent.write_text("in the way")
    else:

        def refused(*args: object, **named: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("esdllm_models.linear.kept.NamedTemporaryFile", refused)
    times(monkeypatch, {"pieces": FAST})
    choice = choose(WIDE, LARGE, FLOAT32, True)
    assert choice.compute == "pieces"
    assert f"not kept: {home} cannot be written" in choice.reason


def test_a_full_disk_leaves_nothing_half_written(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    def full(*args: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("esdllm_models.linear.kept._publish", full)
    times(monkeypatch, {"pieces": FAST})
    assert "cannot be written (No space left on device)" in choose(WIDE, LARGE, FLOAT32, True).reason
    assert not list(home.iterdir())


def test_without_hard_links_a_file_is_put_in_its_place_whole(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    def refused(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("os.link", refused)
    times(monkeypatch, {"pieces": FAST})
    choose(WIDE, LARGE, FLOAT32, True)
    times(monkeypatch, {})
    assert choose(WIDE, LARGE, FLOAT32, True).compute == "pieces"
    assert [file.suffix for file in home.iterdir()] == [".json"]


def _keeping(folder: Path, number: int, barrier: Any, told: Any) -> None:
    barrier.wait()
    found, lost = Measurements(folder).keep({"key": 1}, {"plain": Seconds(float(number), None)})
    told.put((found["plain"].few, lost))


def test_processes_that_measure_at_once_all_take_what_one_of_them_found(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    barrier, told = fork.Barrier(8), fork.Queue()
    running = [fork.Process(target=_keeping, args=(tmp_path, number, barrier, told)) for number in range(1, 9)]
    for one in running:
        one.start()
    found = [told.get(timeout=30) for _ in running]
    for one in running:
        one.join(30)
    assert len(set(found)) == 1
    assert found[0][1] == ""
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"ESDLLM_HOME": "/a/b"}, "/a/b/kernels"),
        ({"ESDLLM_HOME": " ", "XDG_CACHE_HOME": "/c"}, "/c/esdllm/kernels"),
        ({"ESDLLM_HOME": "", "XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/esdllm/kernels"),
        ({"ESDLLM_HOME": "~/x", "HOME": "/h"}, "/h/x/kernels"),
    ],
)
def test_what_is_kept_lies_in_the_user_s_cache_unless_a_folder_is_named(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Measurements.of_user().folder == Path(expected)


def test_the_same_machine_has_the_same_key() -> None:
    here = measurement_key(WIDE, ["plain", "pieces"], torch.float32, {})
    assert here == measurement_key(WIDE[::-1], ["pieces", "plain"], torch.float32, {"PATH": "/bin"})
    assert json.loads(json.dumps(here)) == here
    assert here["processor"].strip()


# --- measuring ---


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try small parts of matrices, once each."""
    monkeypatch.setattr(timing, "_MOST", 1 << 14)
    monkeypatch.setattr(timing, "_FEW_UNTIL", 0.0)
    monkeypatch.setattr(timing, "_MANY_UNTIL", 0.0)


@pytest.mark.processor
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_kernels_are_timed_and_the_fastest_with_few_rows_with_many_too(dtype: torch.dtype, quick: None) -> None:
    names = [name for name, kernel in COMPUTES.items() if not kernel.problems(CPU, dtype)]
    drawn = torch.get_rng_state()
    found = measured([*WIDE, Matrix(64, 32, 4, expert=True)], names, dtype)
    assert list(found) == names
    assert all(one.few > 0 for one in found.values())
    best = min(found.values(), key=lambda one: one.few)
    assert best.many is not None
    assert best.many > 0
    assert torch.get_rng_state().equal(drawn)


def test_measuring_stops_in_time_and_tries_each_kernel_at_least_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a call takes: here a hundred seconds, by a clock of its own."""
    now, calls = [0.0], []

    def tick() -> float:
        now[0] += 50.0
        return now[0]

    monkeypatch.setattr(timing, "_MOST", 1 << 12)
    monkeypatch.setattr("time.perf_counter", tick)
    monkeypatch.setattr("time.thread_time", tick)
    monkeypatch.setattr(timing._Trial, "turn", _counting(timing._Trial.turn, calls))
    measured(WIDE, ["plain", "pieces"], torch.float32)
    assert calls == [True, True, False, False]  # one matrix, few rows and many


def _counting(turn: Callable[..., None], calls: list[bool]) -> Callable[..., None]:
    def counted(own: timing._Trial, clock: Callable[[], float], few: bool) -> None:
        calls.append(few)
        turn(own, clock, few)

    return counted


@given(layers=st.integers(1, 50), outputs=st.integers(1, 1 << 20), inputs=st.integers(1, 1 << 14))
def test_what_a_matrix_takes_goes_by_its_size_and_number(layers: int, outputs: int, inputs: int) -> None:
    own, head = Matrix(outputs, inputs, layers), Matrix(outputs * 2, inputs, 1, few_rows=True)
    trial = timing._Trial(lambda x: x, torch.empty(0), few=1.0, many=3.0)
    times = layers * outputs / timing._cut(own)
    found = timing._told([own, head], [(own, trial)])
    assert found.few == pytest.approx(times + 2 * outputs / timing._cut(own))
    assert found.many == pytest.approx(12 * times + 2 * outputs / timing._cut(own))  # 256 positions are 4 x 64


@pytest.mark.serial
def test_measuring_takes_two_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setattr(timing, "_FEW_UNTIL", 0.05)
    monkeypatch.setattr(timing, "_MANY_UNTIL", 0.1)
    started = time.thread_time()
    measured(WIDE, ["plain", "pieces"], torch.float32)
    assert time.thread_time() - started < 2


# --- loading ---


def random(catalogue: Catalogue, **named: Any) -> Any:
    return random_model({**llada_config(4), "n_layers": 1}, "cpu", "bfloat16", catalogue, **named)


def test_auto_is_what_is_chosen_where_nothing_is_named_and_a_name_forces_its_own(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "SMALL", 0)
    times(monkeypatch, {"pieces": Seconds(1e-9, 1e-9)})
    assert random(catalogue).compute == random(catalogue, compute="auto").compute == "pieces"
    assert random(catalogue).adapter.dtype == torch.float32
    assert random(catalogue, compute="plain").compute == "plain"
    assert random(catalogue, compute="plain").adapter.dtype == torch.bfloat16


def test_what_was_chosen_is_recorded_with_what_was_made(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "SMALL", 0)
    times(monkeypatch, {"pieces": Seconds(1e-9, 1e-9)})
    config = catalogue.configure("vanilla", settings={"gen_length": 2, "block_length": 2})
    assert Engine.build(random(catalogue), config, catalogue).generate([[1, 2]]).compute == "pieces"


def test_weights_in_fewer_bits_have_nothing_to_choose(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = times(monkeypatch, {})
    monkeypatch.setattr(choosing, "SMALL", 0)
    for compute in (None, "auto"):
        model = random(catalogue, quantize="int8", compute=compute)
        assert (model.compute, model.quantize) == (None, "int8")
    assert not asked


def test_what_weights_would_be_goes_by_the_choice(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    times(monkeypatch, {"pieces": Seconds(1e-9, 1e-9)})
    big = geometries(catalogue)["llada-8b"]
    looked = describe_weights(big, "bfloat16", None, catalogue, measure=False)
    told = describe_weights(big, "bfloat16", None, catalogue)
    assert (told.compute, told.dtype, told.full_dtype) == ("pieces", torch.float32, torch.bfloat16)
    assert told.choice is not None
    assert looked.choice is not None
    assert looked.choice.reason == "by rule, until it is measured in loading"
    assert told.bytes < 1.001 * 2 * 8_015_581_184  # two bytes per weight, norms aside


@needs_fbgemm
def test_whatever_is_chosen_bfloat16_takes_two_bytes_a_weight(catalogue: Catalogue) -> None:
    for name in ("llada-8b", "dream-7b"):
        config = geometries(catalogue)[name]
        found = {
            one: describe_weights(config, "bfloat16", None, catalogue, compute=one).bytes for one in ("plain", "fp16")
        }
        assert found["fp16"] < 1.01 * found["plain"], name


def test_a_family_that_offers_no_kernels_loads_under_auto(catalogue: Catalogue) -> None:
    plan = LoadPlan(torch.float32, CPU)
    plan.only("Mine")
    assert LladaFamily().choose_compute(llada_config(4), plan, True).compute == "plain"


def test_a_choice_that_is_none_of_the_family_s_is_the_family_s_fault(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LladaFamily, "choose_compute", lambda *_: ComputeChoice("fp8", "by a guess"))
    with pytest.raises(PluginError, match="llada chooses the compute 'fp8'; known: plain, packed, pieces, fp16"):
        load_model(CASES / "llada-0", "cpu", catalogue=catalogue)


# --- the command ---


def test_doctor_tells_of_every_kernel_what_it_takes_or_why_it_is_not_chosen(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "SMALL", 0)
    monkeypatch.setenv("COLUMNS", "200")
    times(monkeypatch, {"pieces": Seconds(0.0123, 0.456)})
    _, out, _ = run("doctor", "--model", str(CASES / "llada-0"), "--dtype", "float32")
    assert "Kernels  of linear layers; * marks what is chosen: measured with 16 and 256 positions, kept in" in out
    assert "pieces *  serves, 12.3 ms, 456 ms" in out
    assert "it rounds to 0.001, float32 to 1e-07" in out
    weights = json.loads(run("doctor", "--model", str(CASES / "llada-0"), "--dtype", "float32", "--json")[1])["weights"]
    assert weights["compute"] == weights["choice"]["compute"] == "pieces"
    assert [one["name"] for one in weights["choice"]["kernels"]] == list(COMPUTES)


@needs_bfloat16
def test_what_is_printed_of_an_answer_names_the_kernel(run: Run, small: dict[str, Path]) -> None:
    common = ["generate", "hi", "-m", str(small["tiny-llada"]), "--gen-length", "4", "--block-length", "4"]
    assert run(*common)[2].rstrip().endswith(", compute packed")
    assert json.loads(run(*common, "--compute", "pieces", "--json")[1])["compute"] == "pieces"


@pytest.mark.parametrize(
    "words",
    [
        ("simulate", "--peak-gflops", "1", "--peak-gbs", "1"),
        ("bench", "serve"),
        ("generate", "hi"),
        ("explain",),
        ("doctor",),
    ],
)
def test_a_command_that_a_model_is_named_to_takes_the_kernel_s_name(words: tuple[str, ...], run: Run) -> None:
    code, _, error = run(*words, "-m", str(CASES / "llada-0"), "--compute", "fp8")
    assert code == 2
    assert "the compute 'fp8' is not available for llada; known: plain, packed, pieces, fp16" in error
