"""The public implementations' tokens, case by case. The check takes those in which settings and checkpoints meet in pairs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import CASES
from sampling import covering

from esdllm import Catalogue, InputError
from esdllm.testing import conformance

pytestmark = pytest.mark.no_cover  # whole generations of what other tests cover, which measuring slows by a third
COUNTS = {"llada-0": 66, "llada-1": 66, "llada-2": 55, "dream-0": 60, "dream-1": 60, "dream-2": 55}
"""Cases of each checkpoint, and its logits: 356 and 6."""


def all_cases() -> list[dict[str, Any]]:
    return [case for name in ("cases.json", "official.json") for case in json.loads((CASES / name).read_text())]


def chosen(model: str) -> list[dict[str, Any]]:
    """Return a checkpoint's share of its family's cases in which every two of settings and checkpoint meet that meet in any."""
    own = [case for case in all_cases() if case["model"].split("-")[0] == model.split("-")[0]]
    names = sorted({name for case in own for name in case["settings"]})
    kept = covering([[case["model"], *(str(case["settings"].get(name)) for name in names)] for case in own])
    return [own[at] for at in sorted(kept) if own[at]["model"] == model]


@pytest.mark.slow
@pytest.mark.parametrize("model", COUNTS)
def test_cases_are_equal_token_for_token(model: str, catalogue: Catalogue, tmp_path: Path) -> None:
    cases = chosen(model)
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    (tmp_path / model).symlink_to(CASES / model)
    found = conformance(tmp_path, catalogue=catalogue)
    assert not found.failures
    assert len(found.cases) == len(cases) + 1


@pytest.mark.full
@pytest.mark.parametrize("model", COUNTS)
def test_every_case_is_equal_token_for_token(model: str, catalogue: Catalogue) -> None:
    found = conformance(CASES, model=model, catalogue=catalogue)
    assert not found.failures
    assert len(found.cases) == COUNTS[model]


def test_there_are_356_cases_and_6_logits_files() -> None:
    assert len(all_cases()) + len(list(CASES.glob("*/logits.safetensors"))) == sum(COUNTS.values()) == 362


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
