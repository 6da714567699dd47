"""A command that computes in bfloat16 on a processor that is slow at it says so once, and what is faster."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch

from esdllm.checkpoints import dtypes
from esdllm.checkpoints.dtypes import bfloat16_is_slow
from esdllm.cli import main
from esdllm.cli.shared import SLOW_BFLOAT16
from esdllm.processor import multiplies_bfloat16

Run = Callable[..., tuple[int, str, str]]
HINT = f"hint: {SLOW_BFLOAT16}"
SHORT = ["--gen-length", "4", "--block-length", "4"]
COMMANDS = {
    "generate": ["generate", "What is 12 + 7?", *SHORT],
    "file": ["generate", "--input", "prompts.jsonl", "--output", "answers.jsonl", *SHORT],
    "infill": ["infill", "a [MASK:2] b", "--block-length", "2"],
    "eval": ["eval", "--count", "1", "--task", "code", "-p", "vanilla", *SHORT],
    "trace": ["trace", "What?", "--html", "trace.html", *SHORT],
    "analyze": ["analyze", "What?", *SHORT],
    "bench": [
        "bench",
        "--geometry",
        "tiny,layers=1",
        "--prompt-length",
        "4",
        "--rounds",
        "1",
        "--no-peak",
        "vanilla",
        *SHORT,
    ],
}


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """Run a command on the CPU of a processor that is slow at bfloat16, unless told otherwise."""
    monkeypatch.chdir(tmp_path_factory.mktemp("run"))
    with open("prompts.jsonl", "w", encoding="utf-8") as file:
        file.write('{"prompt": "What?"}\n')

    def ran(*words: str, slow: bool = True) -> tuple[int, str, str]:
        monkeypatch.setattr(dtypes, "multiplies_bfloat16", lambda: not slow)
        code = main([*words, "--device", "cpu"])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return ran


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_a_command_says_once_that_its_dtype_is_slow(run: Run, words: list[str]) -> None:
    code, out, err = run(*words, "--dtype", "bfloat16")
    assert code == 0, err
    assert err.splitlines().count(HINT) == 1
    assert "hint" not in out


@pytest.mark.parametrize(("dtype", "slow"), [("float32", True), ("bfloat16", False)])
def test_a_command_says_nothing_where_nothing_is_slow(run: Run, dtype: str, slow: bool) -> None:
    code, _, err = run(*COMMANDS["generate"], "--dtype", dtype, slow=slow)
    assert code == 0, err
    assert "hint" not in err


def test_a_model_in_its_own_bfloat16_is_told_of_too(run: Run) -> None:
    assert HINT in run("generate", "What?", "-m", "tiny-llada", *SHORT)[2].splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "slow", "hints"), [("bfloat16", True, 1), ("bfloat16", False, 0), ("float32", True, 0)]
)
def test_doctor_tells_it_and_is_healthy_all_the_same(run: Run, dtype: str, slow: bool, hints: int) -> None:
    code, out, _ = run("doctor", "--dtype", dtype, slow=slow)
    assert (code, out.splitlines().count(HINT)) == (0, hints)
    told = json.loads(run("doctor", "--dtype", dtype, "--json", slow=slow)[1])
    assert (told["healthy"], told["hints"]) == (True, [SLOW_BFLOAT16] * hints)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.float32), ("cpu", torch.float16), ("cuda", torch.bfloat16), ("meta", torch.bfloat16)],
)
def test_only_bfloat16_on_a_cpu_is_slow(monkeypatch: pytest.MonkeyPatch, device: str, dtype: torch.dtype) -> None:
    monkeypatch.setattr(dtypes, "multiplies_bfloat16", lambda: False)
    assert bfloat16_is_slow(torch.device("cpu"), torch.bfloat16)
    assert not bfloat16_is_slow(torch.device(device), dtype)


def test_whether_bfloat16_is_multiplied_is_torch_s_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    has = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert multiplies_bfloat16() is bool(has)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not multiplies_bfloat16()
