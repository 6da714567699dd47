"""What the pages say holds: their links lead somewhere, their tables are the code's. test_docs_examples.py runs their code."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from pages import PAGES, ROOT, name_of

from esdllm import Catalogue, DecodeConfig
from esdllm.checkpoints.published import known_checkpoints
from esdllm.config import SECTIONS
from esdllm.errors import installing
from esdllm.hookspecs import HookSpecs
from esdllm.parsing import parse_toml

EXAMPLE = ROOT / "examples" / "plugins" / "esdllm-example-recency"


def _outside_fences(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_internal_links_lead_to_a_file(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", _outside_fences(page))
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


def test_the_pages_speak_of_no_machine() -> None:
    assert not [page.name for page in PAGES if re.search(r"/(work|home|root|tmp)/", page.read_text())]


def _wrong_words(prose: str) -> list[str]:
    """Return what of a page's prose the vocabulary says differently."""
    phrases = parse_toml((ROOT / "tests" / "vocabulary.toml").read_text(encoding="utf-8"))["phrase"]
    found = [(hit[0], phrase["write"]) for phrase in phrases for hit in re.finditer(phrase["pattern"], prose, re.M)]
    return [f"{words!r}: write {instead}" for words, instead in found]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_page_keeps_to_the_vocabulary(page: Path) -> None:
    prose = re.sub(r"`[^`\n]*`", "", _outside_fences(page))
    before, pairs, after = prose.partition("| instead of | write |")  # where wrong words stand on purpose
    assert not _wrong_words(before + after[after.find("\n\n") :] if pairs else prose)


def test_the_vocabulary_finds_what_it_is_for_and_leaves_the_rest() -> None:
    for wrong in (
        "It makes 40 tokens a second.",
        "The command tells the two apart.",
        "The same holds of a file.",
        "It is refused, or something else. Use the one or else.",
        "It waits, lest it be lost.",
        "What is shown is what comes out.",
    ):
        assert _wrong_words(wrong), wrong
    for right in (
        "how many tokens per second",
        "It runs nothing else.",
        "How many positions a step commits",
        "it holds",
    ):
        assert not _wrong_words(right), right


@pytest.fixture(scope="module")
def tables() -> dict[str, str]:
    hook = runpy.run_path(str(ROOT / "docs" / "tables.py"))
    return {name: write() for name, write in hook["TABLES"].items()}


def test_every_table_is_on_a_page(tables: dict[str, str]) -> None:
    marks = [mark for page in PAGES for mark in re.findall(r"^<!-- table: (.+) -->$", page.read_text(), re.MULTILINE)]
    assert sorted(marks) == sorted(tables)


def test_the_tables_hold_every_setting_component_and_preset(tables: dict[str, str]) -> None:
    catalogue, text = Catalogue.load(), "\n".join(tables.values())
    names = [field for field in DecodeConfig.__annotations__ if field not in SECTIONS]
    names += [name for name in catalogue.names("preset") if not name.endswith("-parallel")]  # one sentence tells these
    for kind in SECTIONS:
        names += catalogue.names(kind)
        names += [option.name for name in catalogue.names(kind) for option in catalogue.entry(kind, name).options]
    assert not [name for name in names if f"`{name}`" not in text]


def test_the_table_of_families_has_every_family_and_public_checkpoint(
    tables: dict[str, str], catalogue: Catalogue
) -> None:
    rows = tables["model-families"].splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == catalogue.names("model")
    assert all(hub_id in tables["model-families"] for hub_id in known_checkpoints(catalogue))


def test_short_inline_code_is_marked_so_that_a_narrow_screen_does_not_break_it() -> None:
    mark = runpy.run_path(str(ROOT / "docs" / "words.py"))["on_page_content"]
    short, long, block = "<code>--set</code>", f"<code>{'a b ' * 10}</code>", "<pre><code><span>x</span></code></pre>"
    assert mark(f"{short} {long} {block}", page=None) == f'<code class="word">--set</code> {long} {block}'
    assert "code.word" in (ROOT / "docs" / "extra.css").read_text()


def test_the_pages_count_the_hooks_right() -> None:
    hooks = [name for name in vars(HookSpecs) if name.startswith("esdllm_")]
    assert len(hooks) == 13
    assert "thirteen" in (HookSpecs.__doc__ or "")


def test_the_check_in_the_readme_is_the_one_that_ci_runs() -> None:
    command = re.search(r"tools/check\.sh.*", (ROOT / ".ci" / "run").read_text())
    assert command
    assert f"\n{command[0]}\n" in (ROOT / "README.md").read_text()


def test_an_extra_is_installed_in_quotes_which_every_shell_takes() -> None:
    files = [
        path
        for folder in ("esdllm", "backends", "models", "policies", "docs", "tools", "examples")
        for path in (ROOT / folder).rglob("*")
    ]
    texts = {
        path: path.read_text(encoding="utf-8") for path in files if path.suffix in (".py", ".md", ".template", ".toml")
    }
    bare = {
        str(path.relative_to(ROOT)) for path, text in texts.items() if re.search(r"pip install [^\"'`\n]*\w\[", text)
    }
    assert not bare
    assert installing("plot") == 'pip install "esdllm[plot]"'
