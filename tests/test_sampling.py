"""The part that the check takes of a product holds what it says, and coverage is held to its floors."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

import pytest
from sampling import covering, pairwise

PRODUCTS = [
    list(product(range(10), "ab", range(4), (False, True))),
    [case for case in product(range(5), "abc", range(3)) if case[0] != 2 or case[1] == "a"],
    list(product(range(3))),
]


@pytest.mark.parametrize("cases", PRODUCTS, ids=["whole", "holed", "one axis"])
def test_any_two_values_that_meet_in_a_product_meet_in_what_is_kept(cases: list[tuple[object, ...]]) -> None:
    kept = [cases[at] for at in covering(cases)]
    for one, other in combinations(range(len(cases[0])), 2):
        assert {(case[one], case[other]) for case in kept} == {(case[one], case[other]) for case in cases}
    assert len(kept) < len(cases) or len(cases[0]) == 1


def test_every_case_stays_and_what_is_not_kept_is_full() -> None:
    cases = PRODUCTS[0]
    found = pairwise(cases)
    assert [one.values for one in found] == cases
    left_out = [one.values for one in found if [mark.name for mark in one.marks] == ["full"]]
    assert len(left_out) == len(cases) - len(covering(cases))


@pytest.mark.parametrize(("lines", "branches", "code"), [(95, 90, 0), (94, 100, 1), (100, 89, 1)])
def test_lines_and_branches_have_a_floor_each(lines: int, branches: int, code: int) -> None:
    totals = {
        "covered_lines": lines,
        "num_statements": 100,
        "covered_branches": branches,
        "num_branches": 100,
    }
    tool = Path(__file__).parent.parent / "tools"
    script = f"import sys; sys.path.insert(0, {str(tool)!r}); import coverage_floors as c; sys.exit(c.judge({totals}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout.splitlines()[0] == f"{lines}.0% of the lines are covered; at least 95% must be"
