"""`esdllm simulate`: what it is asked, what it prints, writes and draws, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from esdllm.serving.scheduler import POLICIES

PEAKS = ("--geometry", "tiny", "--peak-gflops", "10", "--peak-gbs", "5")
FEW = ("--requests", "12", "--answer-tokens", "8:16", "--prompt-tokens", "8:16", "--multiple", "8", "--slots", "2")


def told(run: Any, *more: str) -> dict[str, Any]:
    """Return the JSON of a run that is sound."""
    code, out, _ = run("simulate", *PEAKS, *FEW, "--json", *more)
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    return found


def test_every_policy_and_static_batches_are_simulated_unless_some_are_named(run: Any) -> None:
    found = told(run)
    assert [one["name"] for one in found["runs"]] == [*POLICIES, "static"]
    assert {one["load"] for one in found["runs"]} == {"concurrency 4"}  # two per slot
    assert [one["name"] for one in told(run, "--policy", "static", "--policy", "oldest")["runs"]] == [
        "static",
        "oldest",
    ]


def test_each_load_is_a_run_of_the_same_requests(run: Any) -> None:
    found = told(run, "--rate", "0.5", "--rate", "9", "--policy", "widest")
    assert [one["load"] for one in found["runs"]] == ["rate 0.5", "rate 9"]
    calm, busy = found["runs"]
    assert calm["tokens"] == busy["tokens"]
    assert calm["latency"]["p50"] < busy["latency"]["p50"]
    assert calm["first"]["p99"] <= calm["latency"]["p99"]
    assert found["asked"]["slots"] == 2


def test_more_machines_answer_more(run: Any) -> None:
    one, four = (
        told(run, "--rate", "50", "--policy", "widest", "--replicas", str(number))["runs"][0] for number in (1, 4)
    )
    assert four["throughput"] > 2 * one["throughput"]


def test_patience_and_admission_are_passed_on(run: Any) -> None:
    many = ("--requests", "60", "--concurrency", "30", "--slots", "6", "--policy", "widest")
    plain = told(run, *many)["runs"][0]
    for more in (("--patience", "60"), ("--admission", "at-refreshes")):
        assert told(run, *many, *more)["runs"][0] != plain


def test_what_is_late_or_refused_is_counted(run: Any) -> None:
    (found,) = told(run, "--rate", "1000", "--max-queue", "1", "--policy", "oldest")["runs"]
    assert found["refused"] > 0
    (found,) = told(run, "--rate", "1000", "--timeout", "0.001", "--policy", "oldest")["runs"]
    assert found["late"] > 0
    (found,) = told(run, "--rate", "1000", "--within", "0.001", "--policy", "oldest")["runs"]
    assert (found["good"], found["goodput"]) == (0, 0.0)


def test_tables_have_a_line_a_run(run: Any) -> None:
    code, out, _ = run("simulate", *PEAKS, *FEW, "--rate", "3")
    assert code == 0
    assert out.startswith("tiny, preset es-dllm, 1 replica of 2 slots, 10 GFLOPs per second")
    for name in (*POLICIES, "static"):
        assert out.count(f"rate 3, {name} ") == 2  # rates, and seconds


@pytest.mark.slow
def test_a_picture_is_drawn(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for load in ("--rate", "--concurrency"):
        code, _, err = run("simulate", *PEAKS, *FEW, load, "1", load, "4", "--plot", str(tmp_path / "s.png"))
        assert code == 0
        assert "wrote" in err
        assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--policy", "wides"], "did you mean 'widest'?"),
        (["--policy", ""], "known: oldest"),
        (["--admission", "alik"], "did you mean 'alike'?"),
        (["--rate", "1", "--concurrency", "2"], "two kinds of traffic"),
        (["--burst", "2"], "without --rate"),
        (["--rate", "0"], "give requests per second, above 0"),
        (["--rate", "nan"], "give requests per second, above 0"),
        (["--within", "0"], "--within 0; give seconds, above 0"),
        (["--timeout", "-1"], "--timeout -1; give seconds, above 0"),
        (["--prompt-tokens", "0"], "lengths"),
        (["--answer-tokens", "64:16"], "lengths"),
        (["--plot", "s.bmp"], "let it end in"),
        (["--prompt-tokens", "100000"], "context"),
    ],
    ids=str,
)
def test_what_cannot_be_simulated_is_refused(run: Any, more: list[str], message: str) -> None:
    code, _, err = run("simulate", *PEAKS, *more)
    assert code != 0
    assert message in " ".join(err.split())


def test_seconds_need_a_machine(run: Any) -> None:
    code, _, err = run("simulate", "--geometry", "tiny")
    assert code != 0
    assert "give --peak-gflops and --peak-gbs, or --measure" in " ".join(err.split())
