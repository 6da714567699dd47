"""A broken plugin: every command refuses by its name, and `esdllm doctor` lists it and tells the rest without it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import attrs
import pytest
from helpers import offers

import esdllm.plugins.loader
from esdllm import Catalogue, PluginError, hookimpl
from esdllm.cli import main

REAL = esdllm.plugins.loader.entry_points


@attrs.frozen
class Scorer:
    """A component that does nothing."""


class Point(SimpleNamespace):
    """An entry point of a package that is not installed."""

    def __init__(self, name: str, made: Callable[[], object], package: str = "") -> None:
        super().__init__(name=name, value=f"{name}.module", load=made)
        self.dist = SimpleNamespace(name=package or f"the-{name}", version="1.2")


def raising(error: BaseException) -> Callable[[], Any]:
    def load() -> Any:
        raise error

    return load


def hook(name: str, call: Callable[[], Any]) -> Callable[[], ModuleType]:
    """Return what imports a module whose hook is `call`."""

    def load() -> ModuleType:
        module = ModuleType("stranger")
        setattr(module, name, hookimpl(lambda: call()))
        return module

    return load


def offering(name: str, offered: object) -> Callable[[], ModuleType]:
    return lambda: offers(name, offered)  # type: ignore[arg-type]


class Endless(Mapping[str, object]):
    """A mapping that cannot be read."""

    def __getitem__(self, key: str) -> object:
        raise KeyError(key)

    def __len__(self) -> int:
        return 1

    def __iter__(self):
        raise RuntimeError("no end")


class Unwritable:
    """A factory that cannot be shown."""

    def __repr__(self) -> str:
        raise ValueError("no words")


class Panic(BaseException):
    """What a library that is written in Rust raises."""


class Trap:
    """A plugin one of whose attributes cannot be read."""

    @property
    def esdllm_presets(self) -> object:
        raise RuntimeError("not today")


BROKEN: dict[str, tuple[Callable[[], object], str]] = {
    "missing module": (raising(ModuleNotFoundError("No module named 'triton'")), "cannot be imported: ModuleNotFound"),
    "syntax": (raising(SyntaxError("bad")), "cannot be imported: SyntaxError: bad"),
    "exit": (raising(SystemExit(3)), "cannot be imported: SystemExit: 3"),
    "panic": (raising(Panic("index out of bounds")), "cannot be imported: Panic: index out of bounds"),
    "recursion": (raising(RecursionError("too deep")), "cannot be imported: RecursionError"),
    "hook raises": (hook("esdllm_presets", raising(KeyError("HOME"))), "esdllm_presets of plugin 'bad'"),
    "hook exits": (hook("esdllm_presets", raising(SystemExit(1))), "failed: SystemExit: 1"),
    "hook returns none": (hook("esdllm_presets", lambda: None), "returned NoneType; return a mapping"),
    "hook returns a list": (hook("esdllm_presets", lambda: [Scorer]), "returned list; return a mapping"),
    "hook returns a class": (hook("esdllm_suites", lambda: Scorer), "returned type; return a mapping"),
    "endless mapping": (hook("esdllm_suites", Endless), "failed: RuntimeError: no end"),
    "name is no text": (offering("esdllm_suites", {7: Scorer}), "offers suite 7; a name is a text"),
    "function": (offering("esdllm_suites", {"mine": lambda: None}), "offer a frozen attrs class"),
    "instance": (offering("esdllm_cache_stores", {"mine": Scorer()}), "offer a frozen attrs class"),
    "plain class": (offering("esdllm_cache_stores", {"mine": dict}), "offer a frozen attrs class"),
    "unwritable factory": (
        offering("esdllm_cache_stores", {"mine": Unwritable()}),
        "cannot be written; offer a frozen",
    ),
    "preset as a dict": (offering("esdllm_presets", {"mine": {"gen_length": 8}}), "offer an esdllm.Preset"),
    "reserved name": (offering("esdllm_attention_backends", {"auto": Scorer}), "the name is reserved"),
    "taken name": (
        offering("esdllm_cache_stores", {"dense": Scorer}),
        "two components of kind cache are named 'dense'",
    ),
    "misspelt hook": (offering("esdllm_importance_scorer", {}), "unknown hook 'esdllm_importance_scorer'"),
    "other interface": (lambda: SimpleNamespace(esdllm_interface=99), "was built for interface 99"),
    "no interface": (lambda: SimpleNamespace(esdllm_interface="1"), "states esdllm_interface = '1'"),
    "trap": (Trap, "cannot be registered: RuntimeError: not today"),
}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that puts entry points before the installed ones."""
    monkeypatch.delenv("ESDLLM_DISABLE_PLUGINS", raising=False)
    monkeypatch.setenv("COLUMNS", "200")

    def install(*points: Point) -> None:
        monkeypatch.setattr(esdllm.plugins.loader, "entry_points", lambda group: [*points, *REAL(group=group)])

    return install


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_plugin_is_named_by_every_command_and_left_out_by_its_name(install, kind: str, monkeypatch) -> None:
    load, said = BROKEN[kind]
    install(Point("bad", load))
    with pytest.raises(PluginError) as caught:
        Catalogue.load()
    assert said in str(caught.value)
    assert "'bad' of the-bad 1.2" in str(caught.value)
    assert caught.value.plugin == "bad"
    monkeypatch.setenv("ESDLLM_DISABLE_PLUGINS", "bad")
    assert "dense" in Catalogue.load().names("cache")


def test_doctor_lists_every_broken_plugin_and_tells_the_rest(install, capsys, monkeypatch) -> None:
    sound = Point("sound", offering("esdllm_cache_stores", {}))
    points = [Point(f"bad-{number}", load) for number, (load, _) in enumerate(BROKEN.values())]
    install(*points, sound, Point("twice", ModuleType, "one"), Point("twice", ModuleType, "two"))
    assert main(["doctor", "--device", "cpu", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    found = [one["name"] for one in told["broken_plugins"]]
    assert sorted(found) == sorted([*(point.name for point in points), "twice"])
    for number, (_, said) in enumerate(BROKEN.values()):
        reason = next(one["reason"] for one in told["broken_plugins"] if one["name"] == f"bad-{number}")
        assert said.replace("'bad'", f"'bad-{number}'") in reason
    assert told["healthy"] is False
    assert "dense" in [one["store"] for one in told["memory"]]
    monkeypatch.setenv("ESDLLM_DISABLE_PLUGINS", ",".join(found))
    assert main(["doctor", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["broken_plugins"] == []


def test_doctor_s_text_says_what_leaves_the_broken_plugins_out_beside_those_that_are(
    install, capsys, monkeypatch
) -> None:
    install(Point("bad", raising(OSError("disk"))), Point("worse", raising(OSError("disk"))), Point("old", ModuleType))
    assert main(["plugins"]) == 2
    assert "plugin 'bad' of the-bad 1.2" in capsys.readouterr().err
    monkeypatch.setenv("ESDLLM_DISABLE_PLUGINS", "old")
    assert main(["doctor", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert out.index("Optional packages") < out.index("Broken plugins") < out.index("Attention backends")
    assert "ESDLLM_DISABLE_PLUGINS=old,bad,worse leaves them out" in out
    assert "The configuration cannot run here" not in out


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_doctor_lists_a_broken_plugin_where_the_rest_cannot_be_told_without_it(install, capsys, words) -> None:
    install(Point("bad", raising(OSError("disk"))))
    assert main(["doctor", "--device", "cpu", "-s", "cache=mine", *words]) == 2
    told = capsys.readouterr()
    assert "plugin 'bad' of the-bad 1.2 (bad.module) cannot be imported: OSError: disk" in told.out
    assert "unknown cache 'mine'" in told.err
    if words:
        assert json.loads(told.out)["error"].startswith("unknown cache 'mine'")


def test_of_two_components_of_one_name_the_stranger_s_is_left_out(install, monkeypatch) -> None:
    later = Point("bad", offering("esdllm_cache_stores", {"dense": Scorer}))
    for points in ([later, *REAL(group="esdllm")], [*REAL(group="esdllm"), later]):
        monkeypatch.setattr(esdllm.plugins.loader, "entry_points", lambda group, points=points: points)
        with pytest.raises(PluginError) as caught:
            Catalogue.load()
        assert caught.value.plugin == "bad"


def test_a_name_that_leaves_nothing_out_is_still_refused_by_doctor(install, capsys, monkeypatch) -> None:
    install()
    monkeypatch.setenv("ESDLLM_DISABLE_PLUGINS", "no-such")
    assert main(["doctor"]) == 2
    assert "cannot disable the plugin 'no-such'" in capsys.readouterr().err


def test_a_ctrl_c_while_a_plugin_is_imported_is_a_ctrl_c(install) -> None:
    install(Point("slow", raising(KeyboardInterrupt())))
    with pytest.raises(KeyboardInterrupt):
        Catalogue.load()
