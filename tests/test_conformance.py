"""The public implementations' tokens, case by case. The quick run takes one checkpoint of each family."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import CASES

from esdllm import Catalogue, InputError
from esdllm.testing import conformance

COUNTS = {"llada-0": 66, "llada-1": 66, "llada-2": 55, "dream-0": 60, "dream-1": 60, "dream-2": 55}
"""Cases of each checkpoint, and its logits: 356 and 6."""


@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=() if name.endswith("0") else pytest.mark.slow) for name in COUNTS]
)
def test_every_case_is_equal_token_for_token(model: str, catalogue: Catalogue) -> None:
    found = conformance(CASES, model=model, catalogue=catalogue)
    assert not found.failures
    assert len(found.cases) == COUNTS[model]


def test_there_are_356_cases_and_6_logits_files() -> None:
    cases = [case for name in ("cases.json", "official.json") for case in json.loads((CASES / name).read_text())]
    assert len(cases) + len(list(CASES.glob("*/logits.safetensors"))) == sum(COUNTS.values()) == 362


def test_a_wrong_token_is_reported(tmp_path: Path, catalogue: Catalogue) -> None:
    case = next(c for c in json.loads((CASES / "official.json").read_text()) if c["model"] == "llada-0")
    case["sequences"][0][-1] ^= 1
    (tmp_path / "cases.json").write_text(json.dumps([case]))
    shutil.copytree(CASES / "llada-0", tmp_path / "llada-0", ignore=shutil.ignore_patterns("logits*"))
    found = conformance(tmp_path, catalogue=catalogue)
    assert str(found) == "0 passed, 1 failed"
    assert "is expected" in next(iter(found.failures.values()))


def test_a_folder_without_cases_is_an_error(tmp_path: Path, catalogue: Catalogue) -> None:
    with pytest.raises(InputError, match="holds no case"):
        conformance(tmp_path, catalogue=catalogue)
