"""The hooks' page: every hook with its exact signature, and an example that keeps the laws of its kind."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from esdllm import Catalogue, testing
from esdllm.hookspecs import HookSpecs
from esdllm.plugins.catalogue import KINDS
from esdllm.testing import CHECKS

PAGE = (Path(__file__).parent.parent / "docs" / "hooks.md").read_text(encoding="utf-8")
HOOKS = [name for name in vars(HookSpecs) if name.startswith("esdllm_")]
COMPONENTS = [hook for hook in HOOKS if hook != "esdllm_commands"]
EXAMPLES = [hook for hook in COMPONENTS if hook != "esdllm_model_adapters"]


def _section(hook: str) -> str:
    found = re.search(rf"^## `{hook}` {{ #{hook} }}\n(.*?)(?=^## )", PAGE, re.DOTALL | re.MULTILINE)
    assert found, f"{hook} has no section"
    return found[1]


def _kind(hook: str) -> str:
    return next(kind for kind, name in KINDS.items() if name == hook)


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def example(monkeypatch_module: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's code defines, but for the run at its end."""
    code = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[:-1]
    module = ModuleType("hooks_page")
    monkeypatch_module.setitem(sys.modules, "hooks_page", module)  # torch.compile imports what it compiles
    for block in code:
        exec(compile(block, "docs/hooks.md", "exec", dont_inherit=True), vars(module))
    return vars(module)


def test_every_hook_has_a_section_in_the_order_of_the_specification() -> None:
    assert re.findall(r"^## `(esdllm_\w+)`", PAGE, re.MULTILINE) == HOOKS


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_s_signature_is_the_specification_s(hook: str) -> None:
    specified = inspect.signature(getattr(HookSpecs, hook))
    assert list(specified.parameters) == ["self"]
    assert f"```py\n{hook}() -> {specified.return_annotation}\n```" in _section(hook)


@pytest.mark.parametrize("hook", COMPONENTS)
def test_a_hook_s_row_names_its_section_and_its_check(hook: str) -> None:
    row = re.search(rf"^\| \[`{hook}`\]\(#{hook}\) \|(.*?)\|", PAGE, re.MULTILINE)
    assert row
    kind = _kind(hook)
    assert row[1].strip() in ("", f"`[{kind}]`", f"`[[{kind}]]`")
    named = re.search(r"^Check: \[`(\w+)`\]\(reference/testing\.md\)\.$", _section(hook), re.MULTILINE)
    assert named
    assert getattr(testing, named[1]) is CHECKS[kind]


@pytest.mark.slow
@pytest.mark.parametrize("hook", EXAMPLES)
def test_an_example_keeps_the_laws_of_its_kind(hook: str, example: dict[str, Any]) -> None:
    plugin = ModuleType("plugin")
    vars(plugin).update({name: value for name, value in example.items() if name.startswith("esdllm_")})
    catalogue = Catalogue.load({"of-this-page": plugin})
    (name, factory), *_ = example[hook]().items()
    entry, kind = catalogue.entry(_kind(hook), name), _kind(hook)
    assert entry.factory == factory
    if kind == "preset":
        testing.check_preset(factory, catalogue)
    elif kind == "cache":
        testing.check_cache_store(factory(of=catalogue.build("cache", catalogue.configure("es-dllm").cache)))
    else:
        CHECKS[kind](factory())
