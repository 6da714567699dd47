"""Fails if the tests covered too little of the four packages: `python tools/coverage_floors.py`, after `pytest --cov`."""

from __future__ import annotations

import json
import subprocess
import sys

FLOORS = {"lines": 95.0, "branches": 90.0}
"""at least so many percent"""


def shares(totals: dict[str, int]) -> dict[str, float]:
    """Return what was covered in percent, of coverage's totals."""
    return {
        "lines": 100 * totals["covered_lines"] / max(1, totals["num_statements"]),
        "branches": 100 * totals["covered_branches"] / max(1, totals["num_branches"]),
    }


def judge(totals: dict[str, int]) -> int:
    """Print what was covered; return 1 if it is too little, else 0."""
    found = shares(totals)
    for name, floor in FLOORS.items():
        print(f"{found[name]:.1f}% of the {name} are covered; at least {floor:.0f}% must be")
    return int(any(found[name] < floor for name, floor in FLOORS.items()))


def main() -> int:
    report = subprocess.run(
        [sys.executable, "-m", "coverage", "json", "-q", "-o", "-"], capture_output=True, text=True, check=True
    )
    return judge(json.loads(report.stdout)["totals"])


if __name__ == "__main__":
    sys.exit(main())
