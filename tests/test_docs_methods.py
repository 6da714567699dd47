"""The tables of methods name every component, and every paper that the other pages name a method by."""

from __future__ import annotations

import re
from pathlib import Path

from esdllm import Catalogue
from esdllm.config import SECTIONS

DOCS = Path(__file__).parent.parent / "docs"
METHODS = (DOCS / "methods.md").read_text(encoding="utf-8")
OWN = ("esdllm-policies", "esdllm-backends", "esdllm-models")


def _implemented() -> dict[str, set[str]]:
    """The components of the first tables, by section."""
    text = METHODS.split("## What the hooks can express")[0]
    sections = re.findall(r"^### [^`\n]+: `(\w+)`\n(.*?)(?=^###? |\Z)", text, re.DOTALL | re.MULTILINE)
    return {
        section: {
            name
            for cell in re.findall(r"^\| (`[^|]+`) \|", rows, re.MULTILINE)
            for name in cell.strip("`").split("`, `")
        }
        for section, rows in sections
    }


def test_every_shipped_component_has_its_row() -> None:
    catalogue = Catalogue.load()
    shipped = {
        kind: {entry.name for entry in catalogue.entries() if entry.kind == kind and entry.origin.plugin in OWN}
        for kind in SECTIONS
    }
    assert _implemented() == shipped


def test_every_paper_of_a_shipped_policy_is_in_the_table() -> None:
    named = set(re.findall(r"arXiv (\d{4}\.\d{5})", (DOCS / "policies.md").read_text(encoding="utf-8")))
    assert named
    assert not named - set(re.findall(r"arxiv\.org/abs/(\d{4}\.\d{5})", METHODS))
