"""Commands that packages bring: found by name, refused by name, and never in the way of esdllm's own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import typer

from esdllm import PluginError, hookimpl
from esdllm.cli import main
from esdllm.plugins import loader

Install = Callable[..., None]


def shout(text: str, times: int = 1) -> None:
    """Print a text in capitals."""
    print(text.upper() * times)


def _raises() -> Mapping[str, Any]:
    raise SystemExit(7)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install packages, each by its name and what its hook does or returns."""
    points = list(loader.installed_points())
    monkeypatch.setattr(loader, "installed_points", lambda: points)

    def add(name: str, offered: Any) -> None:
        module = ModuleType(name)

        def esdllm_commands() -> Any:
            return offered() if callable(offered) else offered

        vars(module)["esdllm_commands"] = hookimpl(esdllm_commands)
        monkeypatch.setitem(sys.modules, name, module)
        point: Any = EntryPoint(name, name, "esdllm")
        points.append(point._for(SimpleNamespace(name=f"dist-{name}", version="1.0")))

    return add


def test_a_function_is_a_command_with_its_options_and_help(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("loud", {"shout": shout})
    assert main(["shout", "ab", "--times", "2"]) == 0
    assert capsys.readouterr().out == "ABAB\n"
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert "shout " in out
    assert "Print a text in capitals." in out
    assert not err


def test_a_typer_is_a_command_or_a_group(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = typer.Typer(), typer.Typer()
    one.command()(shout)
    two.command("loud")(shout)
    two.command("twice")(lambda: print("twice"))
    install("loud", {"one": one, "two": two})
    assert main(["one", "a"]) == main(["two", "loud", "b"]) == main(["two", "twice"]) == 0
    assert capsys.readouterr().out == "A\nB\ntwice\n"
    assert main(["one", "--help"]) == 0
    assert "completion" not in capsys.readouterr().out


def test_a_name_that_two_packages_offer_is_refused_to_both(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("here", {"shout": shout, "other": shout})
    install("there", {"shout": shout})
    assert main(["shout", "a"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "one from plugin 'here' of dist-here 1.0, one from plugin 'there' of dist-there 1.0" in err
    assert main(["other", "a"]) == 0


def test_a_command_of_esdllm_s_own_stays_what_it_is(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("here", {"plugins": shout})
    assert main(["plugins", "skip"]) == 0
    assert "esdllm_skip_schedules" in capsys.readouterr().out
    assert main(["--help"]) == 0
    assert (
        "plugin 'here' of dist-here 1.0 offers the command 'plugins', which is esdllm's own" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("offered", "why"),
    [
        (_raises, "esdllm_commands of plugin 'wrong' of dist-wrong 1.0 failed: .*7"),
        (lambda: 1 / 0, "division by zero"),
        (["shout"], "returned list; return a mapping from names"),
        ({"Shout It": shout}, "a name is lower-case words joined by hyphens"),
        ({3: shout}, "offers the command 3; a name"),
        ({"bad": 3}, "the command 'bad' of plugin 'wrong' of dist-wrong 1.0 is 3; offer a function"),
        ({"bad": lambda x: x}, None),
        ({"bad": typer.Typer()}, "the command 'bad' of plugin 'wrong' of dist-wrong 1.0 cannot be built"),
    ],
)
def test_a_broken_plugin_kills_neither_the_help_nor_another_s_command(
    offered: Any, why: str | None, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("wrong", offered)
    install("loud", {"shout": shout})
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert "shout " in out
    assert "generate " in out
    if why:
        assert re.search(f"left out: .*{why}", err)
        assert main(["bad", "x"]) == 2
        assert "there is no command 'bad', unless of what is left out: " in capsys.readouterr().err
    assert main(["shout", "a"]) == 0


def test_a_plugin_that_is_blamed_though_it_is_left_out_is_no_reason_to_go_on() -> None:
    broken: list[loader.BrokenPlugin] = []

    def blames(plugins: loader.Plugins) -> None:
        raise PluginError("it is always its fault", "esdllm-policies")

    with pytest.raises(PluginError, match="always its fault"):
        loader.leaving_out(broken, blames)
    assert [plugin.name for plugin in broken] == ["esdllm-policies"]


def test_doctor_tells_which_commands_are_left_out_and_why(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("here", {"shout": shout, "plugins": shout})
    install("there", {"shout": shout})
    install("wrong", lambda: 1 / 0)
    install("unbuilt", {"bad": typer.Typer()})
    install("sound", {"other": shout})
    assert main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["broken_plugins"]
    left_out = {one["name"]: one["reason"] for one in told["commands_left_out"]}
    assert list(left_out) == ["wrong", "here", "there", "unbuilt"]
    assert "division by zero" in left_out["wrong"]
    assert "'plugins', which is esdllm's own" in left_out["here"]
    assert "two commands are named 'shout'" in left_out["there"]
    assert "cannot be built" in left_out["unbuilt"]
    assert main(["doctor"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "Commands left out" in out
    assert "Broken plugins" not in out


def test_doctor_tells_of_a_broken_plugin_once(install: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install("wrong", {"shout": shout})
    sys.modules["wrong"].esdllm_presets = hookimpl(lambda: 1 / 0)  # type: ignore[attr-defined]
    sys.modules["wrong"].esdllm_nonsense = dict  # type: ignore[attr-defined]
    assert main(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in told["broken_plugins"]] == ["wrong"]
    assert not told["commands_left_out"]


EXTRAS = {"tune": ("optuna", "tune"), "lm-eval": ("lm_eval", "eval")}
"""The commands that need an extra: the package that they import, and the extra."""


@pytest.mark.parametrize("name", EXTRAS)
def test_without_its_extra_a_command_is_listed_and_says_how_to_install_it(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package, extra = EXTRAS[name]
    install = f'pip install "esdllm[{extra}]"'
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["--help"]) == 0
    assert re.search(rf"^  {name} +Needs {re.escape(install)}\.$", capsys.readouterr().out, re.MULTILINE)
    assert main([name]) == 2
    assert f"this command needs {package.replace('_', '-')}: {install}" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, package)
    if find_spec(package):
        assert main(["--help"]) == 0
        assert not re.search(rf"^  {name} +Needs", capsys.readouterr().out, re.MULTILINE)


def test_what_a_command_is_asked_is_the_same_without_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["tune", "--help"])
    whole = capsys.readouterr().out.partition("Options:")[2]
    monkeypatch.setitem(sys.modules, "optuna", None)
    main(["tune", "--help"])
    assert capsys.readouterr().out.partition("Options:")[2] == whole
    assert main(["tune", "--trails", "3"]) == 2
    assert re.search("No such option:? '?--trails", capsys.readouterr().err)


@pytest.mark.parametrize("name", EXTRAS)
def test_a_command_of_esdllm_s_own_plugin_is_no_other_s(
    name: str, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("afirst", {name: shout})
    assert main(["--help"]) == 0
    out, err = capsys.readouterr()
    assert f"\n  {name} " in out
    assert "Print a text in capitals" not in out
    assert f"plugin 'afirst' of dist-afirst 1.0 offers the command '{name}', which is esdllm's own" in err


def test_esdllm_s_own_plugin_can_be_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ESDLLM_DISABLE_PLUGINS", "esdllm-extras")
    assert main(["--help"]) == 0
    assert "tune" not in capsys.readouterr().out
    assert main(["tune"]) == 2
    assert "No such command 'tune'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_catalogue_is_filled_without_the_command_line() -> None:
    code = "import esdllm, sys; esdllm.Catalogue.load(); print(*{'typer', 'rich', 'psutil', 'esdllm.cli'} & set(sys.modules))"
    assert not subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def _exits() -> Mapping[str, Any]:
    sys.exit(3)


@pytest.mark.parametrize(
    "offered",
    [_raises, _exits, lambda: 1 / 0, [], None, {"Tune": shout}, {"tune": 3}, {"tune": shout}, {"lm-eval": shout}],
)
def test_no_other_plugin_takes_a_command_of_esdllm_s_own_plugin_away(
    offered: Any, install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    install("wrong", offered)
    assert main(["tune", "--help"]) == 0
    assert "Find the fastest settings" in capsys.readouterr().out
    assert main(["generate", "--help"]) == 0
    assert not capsys.readouterr().err


def test_a_plugin_that_is_not_there_to_be_left_out_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ESDLLM_DISABLE_PLUGINS", "esdllm-extra")
    assert main(["tune"]) == 2
    assert "cannot disable the plugin 'esdllm-extra'" in capsys.readouterr().err


def test_a_name_that_three_packages_offer_is_refused_to_all(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two", "three"):
        install(name, {"shout": shout, name: shout})
    assert main(["shout", "a"]) == 2
    err = capsys.readouterr().err
    assert all(f"plugin '{name}'" in err for name in ("one", "two", "three"))
    assert main(["one", "a"]) == main(["two", "a"]) == main(["three", "a"]) == 0
