"""`esdllm eval`: results alone on standard output, files that were asked for, errors in one line before the long work."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esdllm import Catalogue, Problem
from esdllm.cli import evaluate as command
from esdllm.cli import main
from esdllm.errors import UnavailableError
from esdllm.measure.evaluation import ONE_BATCH, Contender, Evaluation, EvaluationInterrupted, Interval, Outcome, plots
from esdllm.measure.evaluation.outcomes import BatchCost
from esdllm.measure.evaluation.plots import draw_front, plot_evaluation
from esdllm.measure.plots import new_figure, plain_ticks, save_figure

pytestmark = pytest.mark.covers

Run = Callable[..., tuple[int, str, str]]
QUICK = ["--count", "1", "--gen-length", "8", "--block-length", "4", "--batch", "5"]
TWO = ["-p", "vanilla", "-p", "es-dllm importance.alpha=0.7"]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run `esdllm eval` in an empty folder; give its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def evaluated(*words: str) -> tuple[int, str, str]:
        code = main(["eval", *words])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return evaluated


def made_up(*speeds: float, batches: int = 1) -> Evaluation:
    """An evaluation of one problem and a contender for each speed, each batch faster than the one before."""
    config = Contender.of("vanilla", Catalogue.load()).config
    outcomes = [
        Outcome(str(number), config, (bool(number % 2),), ("",), ((1,) * 60,), _batches(speed, batches))
        for number, speed in enumerate(speeds)
    ]
    return Evaluation("m", "s", "test", 1, (Problem("p", "a"),), tuple(outcomes), {})


def _batches(speed: float, number: int) -> tuple[BatchCost, ...]:
    return tuple(BatchCost(1, 1, 10, 60, 60 / speed / (1 + turn * speed / 100)) for turn in range(number))


@pytest.mark.slow
def test_tables_hold_every_contender_and_task_and_fit_a_terminal(run: Run) -> None:
    code, out, _ = run(*QUICK, *TWO)
    assert code == 0
    title, *rows = out.splitlines()
    assert title.startswith("tiny-llada: 5 problems of tiny (test), gen_length 8, block_length 4, batches of 5")
    assert title.endswith("compared with vanilla")
    assert max(map(len, rows)) <= 100
    for name in TWO[1::2]:
        assert len([row for row in rows if row.strip().startswith(f"{name} ")]) == 3
    heads = [row for row in rows if row.strip().startswith("by task")]
    assert heads[0].split()[3:] == ["describe", "lookup", "lists", "story", "code"]


@pytest.mark.slow
def test_one_batch_s_time_is_called_no_speed_up_in_any_form(run: Run) -> None:
    code, out, _ = run(*QUICK, *TWO, "--task", "code")
    assert code == 0
    assert out.splitlines()[-1].strip() == f"speed-up: {ONE_BATCH}"
    assert not re.search(r"\d+x", out)
    code, out, _ = run(*QUICK, *TWO, "--task", "code", "--json")
    none = dict.fromkeys(("value", "low", "high", "confidence"))
    assert [one["speedup"] for one in json.loads(out)["contenders"]] == [{**none, "batches": 1, "note": ONE_BATCH}] * 2
    assert drawn(made_up(1.0, 2.0)) == ("answer tokens per second (one batch: not a measurement)", {"0", "1"})


@pytest.mark.parametrize(("batches", "percent"), [(2, 50), (3, 75), (4, 87), (5, 93), (6, 95), (9, 95)])
def test_a_speed_up_over_batches_has_the_same_interval_in_every_form(
    batches: int, percent: int, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = made_up(10.0, 20.0, batches=batches)
    ratios = sorted(2 * (1 + 0.2 * turn) / (1 + 0.1 * turn) for turn in range(batches))
    value, (low, high) = statistics.median(ratios), (ratios[batches // 9], ratios[-1 - batches // 9])
    told = evaluation.to_dict()["contenders"][1]["speedup"]
    assert (told["value"], told["low"], told["high"]) == pytest.approx((value, low, high))
    assert (told["batches"], told["note"], int(100 * told["confidence"]) >= percent) == (batches, None, True)
    command.print_evaluation(evaluation)
    _, _, head, _, first, second = capsys.readouterr().out.rstrip().splitlines()[-6:]
    assert head.split()[-3:] == ["speed-up", str(percent), "%"]
    assert second.split()[-4:] == [f"{value:.2f}x", f"{low:.2f}", "to", f"{high:.2f}"]
    assert "x" not in first
    label = f"1: {value:.2f}x ({percent} %: {low:.2f} to {high:.2f})"
    assert drawn(evaluation) == ("answer tokens per second", {"0", label})


def drawn(evaluation: Evaluation) -> tuple[str, set[str]]:
    """The label of the speeds' axis, and the contenders' in the legend."""
    pytest.importorskip("matplotlib")
    figures: list[Any] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "save_figure", lambda figure, _: figures.append(figure))
        plot_evaluation(evaluation, Path("unused.png"))
    axes = figures[0].axes[0]
    return axes.get_xlabel(), {*axes.get_legend_handles_labels()[1]} - {"Pareto front"}


@pytest.mark.slow
def test_progress_is_told_where_standard_error_is_a_file(run: Run) -> None:
    code, out, err = run(*QUICK, *TWO, "--json", "--task", "code", "--task", "lists", "--batch", "1")
    assert code == 0
    assert json.loads(out)["problems"] == 2
    assert err == f"{TWO[1]}: 1 of 2, {TWO[3]}: 0 of 2\n"


@pytest.mark.slow
def test_json_and_files_say_what_was_decoded(run: Run, tmp_path: Path) -> None:
    files = ["--answers", "new/answers.jsonl", "--plot", "new/front.png"]
    code, out, err = run(*QUICK, *TWO, *files, "--json", "--task", "lists", "--task", "code")
    told = json.loads(out)
    assert code == 0
    assert told["problems"] == 2
    assert list(told["contenders"][0]["tasks"]) == ["lists", "code"]
    assert [one["config"]["importance"].get("alpha") for one in told["contenders"]] == [None, 0.7]
    lines = [json.loads(line) for line in (tmp_path / "new" / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    for one in told["contenders"]:
        own = [line for line in lines if line["contender"] == one["name"]]
        assert sum(line["right"] for line in own) / 2 == one["exact_match"]["value"]
        assert [line["right"] for line in own] == [line["answer"].strip() == line["expected"] for line in own]
    assert (tmp_path / "new" / "front.png").read_bytes().startswith(b"\x89PNG")
    assert err.splitlines()[-2:] == ["wrote new/answers.jsonl", "wrote new/front.png"]


@pytest.mark.slow
def test_a_contender_s_own_settings_go_over_those_of_all(run: Run) -> None:
    told = json.loads(
        run(*QUICK, "-p", "vanilla seed=5", "-p", "vanilla", "-s", "seed=4", "--json", "--task", "code")[1]
    )
    assert [one["config"]["seed"] for one in told["contenders"]] == [5, 4]


def test_a_file_of_problems_is_a_suite(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Sort these numbers: 2, 1.", "answer": "1, 2"}\n')
    code, out, _ = run("--suite", "mine.jsonl", *QUICK, "-p", "vanilla")
    assert code == 0
    assert "1 problem of mine.jsonl (test), gen_length 8, block_length 4" in out
    assert "by task" not in out
    assert "compared" not in out


def test_a_plugin_s_suite_is_there_by_name(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sums.py").write_text(
        "import attrs, esdllm\n\n"
        "@attrs.frozen\n"
        "class Sums:\n"
        "    settings = {'gen_length': 8, 'block_length': 8}\n"
        "    def problems(self): return [esdllm.Problem('1 + 1 = ', '2', 'sums')]\n"
        "    def correct(self, problem, answer): return True\n\n"
        "@esdllm.hookimpl\n"
        "def esdllm_suites(): return {'sums': Sums}\n"
    )
    info = tmp_path / "sums-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sums\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[esdllm]\nsums = sums\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, err = run("--suite", "sums", "-p", "vanilla", "--json")
    monkeypatch.delitem(sys.modules, "sums")
    assert code == 0, err
    told = json.loads(out)["contenders"][0]
    assert told["tasks"]["sums"]["value"] == 1
    assert told["config"]["gen_length"] == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "tny"], "unknown suite 'tny', and no such file of JSON lines; did you mean 'tiny'? known: "),
        (["--suite", "none.jsonl"], "cannot read the problems none.jsonl: No such file or directory"),
        (["--task", "list"], "no problem is of the task 'list'; did you mean 'lists'? known: "),
        (["--split", "dev"], "--split dev; write test, tune or all"),
        (["--count", "-1"], "--count -1; write 0 for all problems, or how many of each task"),
        (["--batch", "0"], "Invalid value for '--batch'"),
        (
            ["-p", "vanilla", "-p", "vanilla"],
            "two contenders are named 'vanilla'; leave one out, rename a file, or set ",
        ),
        (["-p", "vanila"], "unknown preset 'vanila'; did you mean 'vanilla'? known: "),
        (["-p", "vanilla importance.alfa=1"], "importance 'hybrid' has no option 'alfa'"),
        (["-s", "preset=vanilla"], "'preset=vanilla' where contenders are compared"),
        (["--plot", "front.gif"], "the plot's name is front.gif; let it end in .png, .svg or .pdf"),
        (["--plot", "file/front.png"], "cannot write file/front.png: File exists; name another file"),
        (["--answers", "folder"], "cannot write folder: Is a directory; name another file"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(command, "load_asked", lambda *_: pytest.fail("a model was loaded"))
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {message}")
    assert len(err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_plot_without_matplotlib_is_refused_early(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run("--plot", "front.png")[2] == 'error: plots need matplotlib: pip install "esdllm[plot]"\n'


def test_an_interrupted_evaluation_prints_what_it_has(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> Evaluation:
        raise EvaluationInterrupted(made_up(1.0, 2.0))

    monkeypatch.setattr(command, "evaluate", interrupted)
    code, out, err = run(*QUICK, *TWO, "--json")
    assert code == 130
    assert json.loads(out)["problems"] == 1
    assert "interrupted: this is of 1 of the 5 problems" in err


def test_help_names_every_default_contender(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert "[vanilla, dual-cache, es-dllm, es-dllm-parallel]".replace(" ", "") in "".join(out.split())


# pictures


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
@pytest.mark.parametrize("speeds", [(5.0,), (5.0, 5.0), (1.0, 10.0, 100.0), (5.0,) * 20], ids=str)
def test_a_report_of_any_shape_is_drawn(tmp_path: Path, kind: str, speeds: tuple[float, ...]) -> None:
    if len(speeds) > 3 and kind != "png":
        pytest.skip("once is enough")
    path = tmp_path / "new" / f"front.{kind}"
    plot_evaluation(made_up(*speeds), path)
    assert path.stat().st_size > 5000


def test_a_picture_shows_every_interval_whole_and_says_which_is_whose() -> None:
    figure = new_figure(4, 3)
    axes = figure.subplots()
    points = [(1.0, Interval(0.5, 0.2, 0.9)), (1.0, Interval(0.5, 0.1, 0.6)), (50.0, Interval(0.4, 0.3, 0.5))]
    draw_front(axes, ["a", "b", "c"], points)
    plain_ticks(axes)
    low, high = axes.get_ylim()
    assert low < 10
    assert high > 90
    assert axes.get_legend_handles_labels()[1] == ["Pareto front", "a", "b", "c"]
    offsets = [bars.lines[0].get_transform().transform((1.0, 50.0))[0] for bars in axes.containers[:2]]
    assert offsets[0] < offsets[1]
    assert axes.get_xscale() == "log"
    assert [tick for tick in axes.get_xticks() if 1 <= tick <= 50] == [1, 2, 5, 10, 20, 50]


@pytest.mark.parametrize("values", [(0.0, 10.0), (10.0, 11.0)])
def test_an_axis_that_spans_little_or_reaches_zero_is_linear(values: tuple[float, float]) -> None:
    axes = new_figure(4, 3).subplots()
    axes.plot(values, [1, 2])
    plain_ticks(axes)
    assert axes.get_xscale() == "linear"


def test_a_picture_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file/x.png", "x.xyz"):
        with pytest.raises(UnavailableError, match=rf"cannot write the plot .*{name}: "):
            save_figure(new_figure(1, 1), tmp_path / name)


@pytest.mark.slow
def test_nothing_that_draws_or_shows_is_imported_with_the_suites() -> None:
    code = "import sys, esdllm; esdllm.Catalogue.load(); print([m for m in ('matplotlib', 'rich') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
