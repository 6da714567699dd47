"""Recorded cases of decoding rules, and what is told where they differ or cannot be run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import CASES

from esdllm import Catalogue
from esdllm.testing import conformance

RULES = Path(__file__).parent / "conformance-rules"
NAMES = sorted(file.stem for file in RULES.glob("*.json"))


@pytest.mark.parametrize("rule", NAMES)
def test_every_recorded_case_comes_out_token_for_token(rule: str, catalogue: Catalogue) -> None:
    found = conformance(RULES, mode=rule, catalogue=catalogue)
    recorded = json.loads((RULES / f"{rule}.json").read_text(encoding="utf-8"))
    assert not found.failures
    assert len(found.cases) == len(recorded["cases"]) + len(recorded["generations"]) > 0
    assert all(
        case.get("settings", {}).get("extra_mask") for case in recorded["generations"] if case["id"] in found.not_run
    )
    assert len(found.not_run) < len(found.cases)


def changed(folder: Path, name: str, **over: Any) -> Path:
    """Write one rule's file with other keys, beside the checkpoints."""
    rules = folder / "rules"
    rules.mkdir()
    (folder / "conformance").symlink_to(CASES)
    recorded = json.loads((RULES / f"{name}.json").read_text(encoding="utf-8"))
    (rules / f"{name}.json").write_text(json.dumps({**recorded, **over}), encoding="utf-8")
    shutil.copy(RULES / f"{name}.safetensors", rules)
    return rules


def first(rule: str, kind: str) -> dict[str, Any]:
    case: dict[str, Any] = json.loads((RULES / f"{rule}.json").read_text(encoding="utf-8"))[kind][0]
    return case


def test_a_step_that_commits_others_is_told_with_both(tmp_path: Path, catalogue: Catalogue) -> None:
    case = first("local-leap", "cases")
    wrong = [[*row, [0, 1]] for row in case["commit"]]
    found = conformance(
        changed(tmp_path, "local-leap", cases=[{**case, "commit": wrong}], generations=[]), catalogue=catalogue
    )
    assert found.failures == {case["id"]: f"commits {case['commit']}, where {wrong} are expected"}


def test_a_generation_that_differs_is_told_by_its_first_token_or_step(tmp_path: Path, catalogue: Catalogue) -> None:
    case = first("local-leap", "generations")
    token = [[*case["sequences"][0][:-1], case["sequences"][0][-1] ^ 1]]
    others = {"token": {"sequences": token}, "step": {"steps": case["steps"][1:]}, "forwards": {"forwards": 99}}
    generations = [{**case, "id": name, **over} for name, over in others.items()]
    found = conformance(changed(tmp_path, "local-leap", cases=[], generations=generations), catalogue=catalogue)
    assert "is expected" in found.failures["token"]
    assert found.failures["step"].startswith("equal tokens, but step 0 of")
    assert found.failures["forwards"] == f"equal tokens, but {case['forwards']} forwards where 99 are expected"


def test_options_that_the_component_refuses_are_a_failure_and_not_a_crash(tmp_path: Path, catalogue: Catalogue) -> None:
    cases = [first("local-leap", kind) for kind in ("cases", "generations")]
    for case in cases:
        case["settings"] = {**case["settings"], "relaxed_threshold": 2.0}
    found = conformance(changed(tmp_path, "local-leap", cases=cases[:1], generations=cases[1:]), catalogue=catalogue)
    assert all("relaxed_threshold" in text for text in found.failures.values())
    assert len(found.failures) == 2


@pytest.mark.parametrize(
    ("rule", "why"), [("freedave", "a row has one branch"), ("no-such", "the rule no-such is not known")]
)
def test_a_rule_without_a_component_is_not_run_and_its_reason_is_told(
    rule: str, why: str, tmp_path: Path, catalogue: Catalogue
) -> None:
    found = conformance(changed(tmp_path, "local-leap", rule=rule), catalogue=catalogue)
    assert len(found.not_run) == len(found.cases)
    assert all(why in text for text in found.not_run.values())
