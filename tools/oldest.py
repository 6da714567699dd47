"""Print pip constraints that hold every dependency of pyproject.toml to the oldest version that it admits."""

import re
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).parent.parent / "pyproject.toml"


def oldest(requirements: list[str]) -> list[str]:
    """Return `name==version` for each requirement that has a lower bound."""
    found = (re.match(r"([A-Za-z0-9_.-]+)(?:\[[^\]]*\])?>=([0-9.]+)", one) for one in requirements)
    return [f"{one[1]}=={one[2]}" for one in found if one]


if __name__ == "__main__":
    print("\n".join(oldest(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"])))
