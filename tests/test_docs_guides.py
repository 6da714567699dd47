"""What the guides say holds: what they count is what the plans say, and what can be installed is told."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from esdllm.cli import main
from esdllm.config import read_toml

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "long-prompts.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(-p [^`]+)` \| ([\d.]+) % \|$", PAGE, re.MULTILINE)
RUN = "explain --geometry llada-8b --prompt-length 3072 --gen-length 256 --block-length 64 --dtype bfloat16 --json"


def test_there_are_rows() -> None:
    assert len(ROWS) == 5


@pytest.mark.parametrize(("options", "share"), ROWS)
def test_a_share_of_the_positions_is_the_plan_s(
    options: str, share: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(f"{RUN} {options}")) == 0
    assert f"{json.loads(capsys.readouterr().out)['layer_share']:.1%}" == f"{share}%"


def test_every_extra_is_on_the_install_page() -> None:
    extras = read_toml(ROOT / "pyproject.toml")["project"]["optional-dependencies"]
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `([a-z]+)` \|", page, re.MULTILINE)) == sorted(extras)
