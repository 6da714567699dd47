"""Every example of the documentation is run, and prints what is shown beneath it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from not_run import LONG, NOT_RUN
from pages import EXTRAS, PAGES, ROOT, Example, Fence, Room, commands_of, difference, examples, fences, name_of

from esdllm import Catalogue, Engine, configure, load_model
from esdllm.measure.evaluation import load_suite

"""how a block begins that is refused without them"""
TOLD = tuple(start for starts in NOT_RUN.values() for start in starts)
FILES = {"toml", "json", "jsonl", "yaml", "text"}
CARDS = {f"tiny-{name}": ROOT / "models" / "esdllm_models" / "tiny" / name / "README.md" for name in ("llada", "dream")}


def not_run(command: str) -> bool:
    return command.startswith(TOLD)


def unlisted(command: str) -> bool:
    """Whether a command is neither esdllm's, which is run, nor listed."""
    return not re.match(r"([A-Z_]+=\S* )*esdllm ", command) and not not_run(command)


def runs(example: Example, long: bool) -> list[str]:
    """The commands of a shell example that the check runs, or those that it leaves out."""
    if example.fence.language == "python":
        return []
    return [c for c in example.commands if not not_run(c) and c.startswith(LONG) == long]


def wrong(example: Example, printed: str) -> str:
    """What is wrong with what is shown beneath an example; nothing if it is what was printed."""
    if example.shown is None:
        return f"{example.fence.name} prints this and shows nothing beneath it:\n{printed}" if printed.strip() else ""
    if not re.search(r"\w", example.shown.replace("…", "")):
        return f"{example.fence.name}: what is shown leaves everything out"
    found = difference(example.shown, printed)
    return f"{example.fence.name} prints something else than it shows:\n{found}\n\n{printed}" if found else ""


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    """A page's folder. The modules that it writes are not found by another page; threads stay as they were."""
    threads = torch.get_num_threads()
    yield Room(tmp_path, monkeypatch)
    torch.set_num_threads(threads)
    for name in [name for name, module in sys.modules.items() if str(tmp_path) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def check(page: Path, room: Room, long: bool) -> None:
    blocks = fences(page)
    found = {example.fence: example for example in examples(blocks)}
    problems = []
    for block in blocks:
        if block.title:
            room.write(block)
        elif (example := found.get(block)) is not None:
            commands = runs(example, long)
            if commands or (block.language == "python" and not long):
                problems.append(wrong(example, room.run(example.fence, commands)))
    assert not any(problems), "\n".join(filter(None, problems))


def _page(page: Path) -> object:
    told = "int8" in page.read_text(encoding="utf-8") or page.stem in ("README", "quickstart", "use")
    return pytest.param(page, marks=pytest.mark.processor if told else (), id=name_of(page))


@pytest.mark.slow
@pytest.mark.parametrize("page", [_page(page) for page in PAGES if examples(fences(page))])
def test_an_example_prints_what_is_shown_beneath_it(page: Path, room: Room) -> None:
    check(page, room, long=False)


@pytest.mark.full
@pytest.mark.parametrize("page", [p for p in PAGES if any(runs(e, True) for e in examples(fences(p)))], ids=name_of)
def test_a_long_example_prints_what_is_shown_beneath_it(page: Path, room: Room) -> None:
    check(page, room, long=True)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_is_run_or_listed_or_a_file(page: Path) -> None:
    blocks = fences(page)
    assert not [e.fence.name for e in examples(blocks) for c in runs(e, False) if unlisted(c)]
    assert not [b.name for b in blocks if not _known(b)]
    listed = [e.fence.name for e in examples(blocks) if e.shown and e.fence.language == "bash"]
    assert not [e.fence.name for e in examples(blocks) if e.fence.name in listed and not runs(e, False) + runs(e, True)]


def _known(block: Fence) -> bool:
    """Whether a block that is not run says what it is: a file, a piece of one, a signature, an output, a formula."""
    if block.language in ("bash", "python"):
        return True
    if block.language == "output":
        return block.beneath
    if block.language == "py":
        return name_of(block.page) in (
            "docs/hooks.md",
            "docs/weights.md",
        )  # signatures; what needs a model of one's own
    if name_of(block.page) == "tests/conformance/README.md":
        return True
    return block.language in FILES and not (block.language == "text" and block.beneath)


def test_what_is_listed_is_on_a_page() -> None:
    commands = [c for page in PAGES for b in fences(page) if b.language == "bash" for c in commands_of(b.code)]
    assert not [start for start in (*TOLD, *LONG) if not any(c.startswith(start) for c in commands)]


@pytest.mark.slow
@pytest.mark.processor
@pytest.mark.parametrize("name", CARDS)
def test_a_card_s_examples_are_what_the_checkpoint_answers(name: str, catalogue: Catalogue) -> None:
    table = CARDS[name].read_text(encoding="utf-8").split("## Scores")[0]
    rows = re.findall(r"^\| ([a-z]+) \| `(.+?)` \| (`.+`) \|$", table, re.MULTILINE)
    assert [task for task, *_ in rows] == ["describe", "lookup", "lists", "story", "code"]
    engine = Engine.build(
        load_model(name, "cpu"), configure("es-dllm", settings=load_suite("tiny", catalogue).settings)
    )
    said = engine.generate([prompt for _, prompt, _ in rows], chat=True).text
    assert said == ["\n".join(re.findall(r"`(.+?)`", answer)) for *_, answer in rows]


PAGE = """# A page

```bash
esdllm plugins blocks
```

```output
blocks  …
  …
```
"""


def _mutant(text: str) -> list[Example]:
    return examples(fences(ROOT / "docs" / "mutant.md", text))


@pytest.mark.parametrize(
    ("shown", "came"),
    [
        ("The result is 12 + 7 = 20.\n", "The result is 12 + 7 = 19.\n"),  # another answer
        ("9 tokens, ≈0.3 s\n", "8 tokens, 0.4 s\n"),  # what stands beside a free number is not free
        ("≈12 tokens\n", "twelve tokens\n"),  # a number is a number
        ("one\n", "one\ntwo\n"),  # a line is missing
        ("one\ntwo\n", "one\n"),  # a line too many
        ("…\ntwo\n", "one\ntwo\nthree\n"),  # lines are left out at one end only
        ("a …\n", "b\na c\n"),  # what is left out of a line stays in it
        ("a    b\n", "a b\n"),  # two words are no two columns
        ("  a\n", "a\n"),  # a line is indented
        ("", "one\n"),
    ],
)
def test_another_output_than_shown_is_a_difference(shown: str, came: str) -> None:
    assert difference(shown, came)


@pytest.mark.parametrize(
    ("shown", "came"),
    [
        ("≈0.21 s, ≈4,096 MB, ≈3\n", "1e-05 s, 2 MB, -17.5\n"),
        ("…\nlast\n", "one\ntwo\nlast\n"),
        ("…\nlast\n", "last\n"),
        ("first\n…\n", "first\n"),
        ("on …, in … s\n", "on an AMD EPYC, in 3 s\n"),
        ("a      ≈1.5\n───\n", "a  1200.55\n─────────\n"),
        ("a (b) [c] .*\n", "a (b) [c] .*  \n\n"),
    ],
)
def test_what_a_page_marks_as_free_may_differ(shown: str, came: str) -> None:
    assert difference(shown, came) == ""


@pytest.mark.parametrize("page", [page for page in PAGES if any(e.shown for e in examples(fences(page)))], ids=name_of)
def test_a_change_of_any_line_that_a_page_shows_is_found(page: Path) -> None:
    for shown in [example.shown for example in examples(fences(page)) if example.shown]:
        lines, came = shown.splitlines(), shown.replace("≈", "")
        assert difference(shown, came) == ""
        for place in [place for place, line in enumerate(lines) if line.strip() not in ("", "…")]:
            changed = [*lines[:place], f"{lines[place]} x", *lines[place + 1 :]]
            assert difference("\n".join(changed), came)


def test_a_changed_output_of_a_page_is_found(room: Room) -> None:
    (example,) = _mutant(PAGE)
    assert wrong(example, room.run(example.fence, example.commands)) == ""
    (mutant,) = _mutant(PAGE.replace("blocks  …", "bloks  …"))
    assert "prints something else" in wrong(mutant, room.run(mutant.fence, mutant.commands))


def test_an_output_that_is_not_shown_or_all_left_out_is_found() -> None:
    (silent,) = _mutant(PAGE[: PAGE.index("```output")])
    assert "shows nothing" in wrong(silent, "something\n")
    (empty,) = _mutant(PAGE.replace("blocks  …\n", ""))
    assert "leaves everything out" in wrong(empty, "something\n")


@pytest.mark.parametrize("command", ["python new.py", "ls", "pip install another", "./run"])
def test_a_new_command_that_is_not_run_is_found(command: str) -> None:
    (example,) = _mutant(f"```bash\n{command}\n```\n")
    assert [c for c in runs(example, False) if unlisted(c)] == [command]


@pytest.mark.parametrize("language", ["sh", "shell", "console", "", "pycon", "py"])
def test_a_new_block_in_another_language_is_found(language: str) -> None:
    (block,) = fences(ROOT / "docs" / "mutant.md", f"```{language}\nesdllm --version\n```\n")
    assert not _known(block)


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_example_finds_no_extra_that_its_place_does_not_name(extra: str, room: Room) -> None:
    code = f"```python\nimport {EXTRAS[extra][0]}\n```\n"
    (told,) = _mutant(f'# A page\n\nIt needs `pip install "esdllm[{extra}]"`.\n\n{code}')
    pytest.importorskip(EXTRAS[extra][0])
    assert room.run(told.fence, []) == ""
    (untold,) = _mutant(f"# A page\n\n{code}")
    with pytest.raises(ImportError):
        room.run(untold.fence, [])
