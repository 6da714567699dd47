"""What a shell completes, as bash, zsh and fish ask for it: names that are installed, from a file that is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import esdllm
from esdllm.cli import main, offered
from esdllm.cli.own import GROUPS

Complete = Callable[..., list[str]]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the names on offer."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        offered.offered()
    return folder


@pytest.fixture
def complete(kept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Complete:
    """Complete the last of some words as bash asks for it, which takes `=` for a word."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    monkeypatch.setenv("HF_HUB_CACHE", str(kept / "hub"))

    def ask(*words: str) -> list[str]:
        with monkeypatch.context() as patch:
            patch.setenv("_ESDLLM_COMPLETE", "complete_bash")
            patch.setenv("COMP_WORDS", "\n".join(["esdllm", *words]))
            patch.setenv("COMP_CWORD", str(len(words)))
            patch.setenv("_ESDLLM_COMPLETED_BEFORE", "")
            with pytest.raises(SystemExit) as ended:
                main([])
        assert ended.value.code == 0
        out, err = capsys.readouterr()
        assert not err
        return out.split()

    return ask


def test_commands_and_their_options_are_completed(complete: Complete) -> None:
    assert set(complete("")) >= {name for names in GROUPS.values() for name in names}
    assert complete("gen") == ["generate"]
    assert complete("models", "p") == ["pull"]
    assert set(complete("bench", "c")) == {"compare", "curve"}
    assert complete("generate", "--tem") == ["--temperature"]
    assert complete("tune", "--max-l") == ["--max-loss"]


def test_names_that_are_installed_are_completed(complete: Complete) -> None:
    presets = esdllm.Catalogue.load().names("preset")
    assert complete("generate", "-p", "") == presets
    assert complete("eval", "--preset", "es-dllm/llada-base/") == [
        name for name in presets if name.startswith("es-dllm/llada-base/")
    ]
    assert complete("generate", "--preset", "=", "vanilla-") == ["vanilla-parallel"]
    assert complete("chat", "-m", "tiny-s") == ["tiny-sdar"]
    assert "GSAI-ML/LLaDA-8B-Instruct" in complete("generate", "--model", "GSAI")
    assert "SDAR-1.7B-Chat" in complete("models", "pull", "SDAR-1.7")
    assert complete("plugins", "unm") == ["unmasking"]
    assert complete("generate", "--family", "sd") == ["sdar", "sdar_moe"]
    assert complete("generate", "--dtype", "b") == ["bfloat16"]
    assert "tiny" in complete("eval", "--suite", "")
    assert complete("generate", "-p", "nothing-of-that-name") == []


def test_setting_keys_and_their_values_are_completed(complete: Complete) -> None:
    assert complete("generate", "-s", "importance.al") == ["importance.alpha=", "importance.alpha=0.5"]
    assert complete("generate", "-s", "gen_l") == ["gen_length=", "gen_length=256"]
    assert set(complete("generate", "-s", "unmasking.")) >= {"unmasking.steps=", "unmasking.threshold="}
    importance = esdllm.Catalogue.load().names("importance")
    assert complete("generate", "-s", "importance", "=") == importance
    assert complete("generate", "-s", "importance.name", "=", "hy") == ["hybrid"]
    assert complete("generate", "--set", "=", "early_st") == ["early_stop=", "early_stop=true"]
    assert complete("generate", "-s", "compile", "=", "") == ["true", "false"]
    assert complete("generate", "-s", "preset", "=", "dual") == ["dual-cache", "dual-cache-parallel"]
    assert complete("generate", "-s", "nonsense", "=", "") == []


def test_models_of_the_hub_s_cache_are_completed(complete: Complete, kept: Path) -> None:
    (kept / "hub" / "models--me--my--model").mkdir(parents=True)
    assert complete("generate", "-m", "me/") == ["me/my--model"]


def test_profiles_of_the_project_are_completed(
    complete: Complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "esdllm.toml").write_text("[profiles.fast]\ngen_length = 32\n[profiles.fine]\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ESDLLM_PROJECT", raising=False)
    assert complete("generate", "--profile", "f") == ["fast", "fine"]
    (tmp_path / "esdllm.toml").write_text("[profiles", encoding="utf-8")
    assert complete("generate", "--profile", "f") == []


def ask(kept: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    heavy = "sorted({'torch', 'numpy', 'transformers'} & set(sys.modules))"
    code = f"import sys; from esdllm.cli import main\ntry: main()\nfinally: print({heavy}, file=sys.stderr)"
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "XDG_CACHE_HOME": str(kept), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_told_in_a_line_each_and_nothing_heavy_is_imported(kept: Path, shell: str) -> None:
    told = ask(
        kept,
        _ESDLLM_COMPLETE=f"complete_{shell}",
        _TYPER_COMPLETE_FISH_ACTION="get-args",
        _TYPER_COMPLETE_ARGS="esdllm generate --set importance=hy",
    )
    assert told.stderr == "[]\n"
    assert len(told.stdout.splitlines()) == 1
    assert "importance=hybrid" in told.stdout


def test_what_is_kept_is_read_until_a_plugin_changes(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept))
    monkeypatch.setattr(offered, "_gathered", lambda: {"preset": {"gathered": "anew"}})
    assert "gathered" not in offered.offered()["preset"]
    monkeypatch.setenv("ESDLLM_DISABLE_PLUGINS", "esdllm-extras")
    assert offered.offered()["preset"] == {"gathered": "anew"}
    (kept / "esdllm" / "names.json").write_text("{", encoding="utf-8")
    assert offered.offered()["preset"] == {"gathered": "anew"}
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    assert offered.offered()["preset"] == {"gathered": "anew"}
