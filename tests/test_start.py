"""What starting costs, counted in modules: help and `import esdllm` import neither torch nor a plugin's components."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import get_type_hints

import pytest

import esdllm

HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "huggingface_hub",
    "esdllm_policies",
    "esdllm_backends",
    "esdllm_models",
    "ray",
)
COMMAND = "import sys; from esdllm.cli import main"


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


def test_neither_help_nor_version_nor_a_wrong_option_imports_what_is_heavy() -> None:
    groups = ("bench", "config", "models")
    plain = ("generate", "chat", "infill", "serve", "explain", "trace", "analyze", "doctor", "eval", "simulate", "tune")
    asked = [["--help"], ["--version"], [], ["generate", "--nonsense"], ["genrate"], ["generate", "--batch", "x"]]
    asked += [[name, "--help"] for name in (*plain, *groups, "plugins", "new-plugin", "conformance")]
    asked += [[group, name, "--help"] for group, name in (("bench", "run"), ("config", "show"), ("models", "pull"))]
    told = python(f"{COMMAND}\nfor words in {asked}: main(words)\nprint('heavy', *{set(HEAVY)} & set(sys.modules))")
    assert told.stdout.splitlines()[-1].split() == ["heavy"]
    assert "tune " in told.stdout  # a command that comes by the hook shows all the same


def test_importing_esdllm_imports_nothing_and_a_name_no_more_than_it_needs() -> None:
    code = "import esdllm, sys; print(*{'attrs', 'typer', 'esdllm.errors', 'torch'} & set(sys.modules), len(dir(esdllm)))\n"
    code += "from esdllm import hookimpl, ConfigError, option; print(*{'torch', 'numpy'} & set(sys.modules), 'light')"
    assert python(code).stdout.split() == [str(len(esdllm.__all__)), "light"]


def _declared() -> Iterator[tuple[str, str]]:
    """Yield each name that type checkers see, and the module that they see it in."""
    for node in ast.walk(ast.parse(Path(esdllm.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("esdllm."):
            yield from ((name.name, node.module) for name in node.names)


def test_what_a_type_checker_sees_is_what_is_imported() -> None:
    assert dict(_declared()) == esdllm._MODULES
    assert sorted(esdllm._MODULES) == sorted(esdllm.__all__)
    assert all(getattr(esdllm, name) is getattr(import_module(esdllm._MODULES[name]), name) for name in esdllm.__all__)


def test_dir_shows_the_public_names_and_no_more() -> None:
    assert dir(esdllm) == sorted(esdllm.__all__)
    with pytest.raises(AttributeError, match="module 'esdllm' has no attribute 'Enginee'"):
        esdllm.Enginee  # noqa: B018  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'gone'"):
        exec("from esdllm import gone")


def test_ctrl_c_while_modules_are_imported_prints_no_traceback() -> None:
    interrupted = """
import sys
class Interrupting:
    at = ""
    def find_spec(self, name, *_):
        if name == self.at: raise KeyboardInterrupt
sys.meta_path.insert(0, finder := Interrupting())
from esdllm.cli import main
codes = []
begins = {"typer": ["--help"], "esdllm.cli.options.generate": ["generate", "--help"], "torch": ["plugins"]}
for finder.at, words in begins.items():
    codes.append(main(words))
print(*codes)
"""
    told = python(interrupted)
    assert (told.stdout, told.stderr) == ("130 130 130\n", "")


PLUGIN = """
from esdllm import hookimpl
{more}
@hookimpl
def {hook}():
    {body}
"""


def _installed(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[esdllm]\n{name} = {name}\n", encoding="utf-8")


def test_a_plugin_is_imported_for_the_help_only_if_it_may_bring_commands(tmp_path: Path) -> None:
    command = 'def shout(text: str) -> None:\n    """Print a text in capitals."""\n'
    offer = 'return {"shout": shout}'
    _installed(tmp_path, "brings", PLUGIN.format(more=command, hook="esdllm_commands", body=offer))
    _installed(tmp_path, "misspells", PLUGIN.format(more="", hook="esdllm_command", body="return {}"))
    star = "from elsewhere import *\n"
    (tmp_path / "elsewhere.py").write_text(
        PLUGIN.format(more=command, hook="esdllm_commands", body='return {"whisper": shout}'), encoding="utf-8"
    )
    _installed(tmp_path, "stars", star)
    _installed(tmp_path, "heavy", PLUGIN.format(more="import torch", hook="esdllm_presets", body="return {}"))
    _installed(tmp_path, "broken", "import nothing_of_that_name\n")
    told = python(f"{COMMAND}; main(['--help']); print('heavy', 'torch' in sys.modules)", PYTHONPATH=str(tmp_path))
    assert told.stdout.endswith("heavy False\n")
    assert "  shout    Print a text in capitals.\n  whisper  Print a text in capitals.\n" in told.stdout
    assert "misspells" in told.stderr
    assert "broken" not in told.stderr


def test_help_that_lists_names_lists_all_of_them() -> None:
    from esdllm.cli.options.bench import BenchCurveOptions, BenchRunOptions
    from esdllm.cli.options.simulate import SimulateOptions
    from esdllm.measure.benchmarking import AXES, DEFAULTS
    from esdllm.serving.scheduler import ADMISSIONS, POLICIES

    def told(options: type, name: str) -> str:
        return str(get_type_hints(options, include_extras=True)[name].__metadata__[0].help)

    assert f"What grows: {', '.join(AXES)}." == told(BenchCurveOptions, "over")
    assert f"[{', '.join(DEFAULTS)}]" in told(BenchRunOptions, "contenders")
    assert f"Who goes first: {', '.join(POLICIES)}; or static" in told(SimulateOptions, "policy")
    assert f": {', '.join(ADMISSIONS)}." in told(SimulateOptions, "admission")
