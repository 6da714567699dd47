"""Every hook: called once while a catalogue is filled, and what it offers is on offer."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import attrs
import pytest
from helpers import offers, plugin

from esdllm import Catalogue, Engine, Model, Preset, hookimpl
from esdllm.errors import PluginError
from esdllm.hookspecs import HookSpecs
from esdllm.plugins.catalogue import KINDS
from esdllm.plugins.loader import load_plugins

HOOKS = [name for name in vars(HookSpecs) if name.startswith("esdllm_")]


@attrs.frozen
class Offered:
    """A component that does nothing."""

    size: int = attrs.field(default=3, metadata={"help": "of what"})


class Counting:
    """A plugin of one hook that counts its calls."""

    def __init__(self, hook: str, offered: object) -> None:
        self.calls = 0

        def implementation() -> object:
            self.calls += 1
            return offered

        self.module = plugin(**{hook: implementation})


def check(hook: str) -> None:
    """Check that `hook` is called once and that its entry appears, under its kind alone, with its origin."""
    offered: object = Preset("made up", {}) if hook == "esdllm_presets" else Offered
    counting = Counting(hook, {"made-up": offered})
    catalogue = Catalogue.load({"mine": counting.module})
    assert counting.calls == 1
    kind = next(kind for kind, name in KINDS.items() if name == hook)
    assert [entry.kind for entry in catalogue.entries() if entry.name == "made-up"] == [kind]
    entry = catalogue.entry(kind, "made-up")
    assert entry.factory is offered
    assert entry.origin.plugin == "mine"
    assert str(entry.origin) == "plugin 'mine' of (registered in this process)"


def test_hook_importance_scorers() -> None:
    check("esdllm_importance_scorers")


def test_hook_skip_schedules() -> None:
    check("esdllm_skip_schedules")


def test_hook_refresh_policies() -> None:
    check("esdllm_refresh_policies")


def test_hook_block_schedules() -> None:
    check("esdllm_block_schedules")


def test_hook_token_samplers() -> None:
    check("esdllm_token_samplers")


def test_hook_unmasking_policies() -> None:
    check("esdllm_unmasking_policies")


def test_hook_attention_backends() -> None:
    check("esdllm_attention_backends")


def test_hook_cache_stores() -> None:
    check("esdllm_cache_stores")


def test_hook_model_adapters() -> None:
    check("esdllm_model_adapters")


def test_hook_presets() -> None:
    check("esdllm_presets")


def test_hook_step_observers() -> None:
    check("esdllm_step_observers")


def test_hook_suites() -> None:
    check("esdllm_suites")


def test_hook_commands() -> None:
    plugin = offers("esdllm_commands", {"made-up": print})
    given = {origin.plugin: offered for origin, offered in load_plugins({"mine": plugin}).offers("esdllm_commands")}
    assert given["mine"] == {"made-up": print}
    assert list(given["esdllm-extras"]) == ["tune", "lm-eval", "serve"]  # esdllm's own come the same way


def test_every_hook_has_a_test_and_a_kind() -> None:
    assert len(HOOKS) == 13
    assert sorted(HOOKS) == sorted([*KINDS.values(), "esdllm_commands"])  # a command is no component
    for hook in HOOKS:
        assert f"test_hook_{hook.removeprefix('esdllm_')}" in globals()


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_says_what_it_offers_and_where_it_is_configured(hook: str) -> None:
    docstring = getattr(HookSpecs, hook).__doc__
    assert docstring.startswith("Offer ")
    assert "Configuration: ``[" in docstring or "Used by" in docstring


def test_an_entry_shows_its_summary_and_options() -> None:
    entry = Catalogue.load({"mine": offers("esdllm_cache_stores", {"made-up": Offered})}).entry("cache", "made-up")
    assert entry.summary == "A component that does nothing."
    assert [(option.name, option.default, option.help) for option in entry.options] == [("size", 3, "of what")]


def test_entries_come_by_kind_then_name(catalogue: Catalogue) -> None:
    found = [(entry.kind, entry.name) for entry in catalogue.entries()]
    kinds = list(KINDS)
    assert found == sorted(found, key=lambda entry: (kinds.index(entry[0]), entry[1]))
    assert ("cache", "dense") in found


def test_no_hook_is_called_while_an_engine_is_built_or_runs(llada: Model) -> None:
    counting = Counting("esdllm_presets", {"made-up": Preset("made up", {"gen_length": 4})})
    catalogue = Catalogue.load({"mine": counting.module})
    config = catalogue.configure("vanilla", settings={"gen_length": 2, "block_length": 2})
    Engine.build(llada, config, catalogue).generate([[1, 2]])
    assert counting.calls == 1


def test_an_object_may_be_a_plugin() -> None:
    class Mine:
        @hookimpl
        def esdllm_cache_stores(self) -> dict[str, Any]:
            return {"made-up": Offered}

    assert "made-up" in Catalogue.load({"mine": Mine()}).names("cache")


@pytest.mark.parametrize("offered", [[("made-up", Offered)], None, Offered])
def test_a_hook_that_returns_no_mapping_is_refused(offered: object) -> None:
    with pytest.raises(PluginError, match=r"esdllm_cache_stores of plugin 'mine' .* returned .*; return a mapping"):
        Catalogue.load({"mine": offers("esdllm_cache_stores", offered)})


class Plain:
    """No attrs class: its options cannot be known."""


@pytest.mark.parametrize("factory", [Plain, lambda: Offered(), 3, Preset("made up", {})])
def test_a_factory_that_is_no_attrs_class_is_refused(factory: object) -> None:
    with pytest.raises(PluginError, match=r"cache 'made-up' of plugin 'mine' .*offer a frozen attrs class"):
        Catalogue.load({"mine": offers("esdllm_cache_stores", {"made-up": factory})})


def test_a_preset_that_is_no_preset_is_refused() -> None:
    with pytest.raises(PluginError, match=r"preset 'made-up' of plugin 'mine' .*offer an esdllm.Preset"):
        Catalogue.load({"mine": offers("esdllm_presets", {"made-up": {"gen_length": 4}})})


def test_a_hook_that_fails_is_named_with_its_plugin() -> None:
    def fail() -> object:
        raise OSError("no disk")

    with pytest.raises(PluginError, match=r"esdllm_presets of plugin 'mine' .* failed: OSError: no disk") as caught:
        Catalogue.load({"mine": plugin(esdllm_presets=fail)})
    assert isinstance(caught.value.__cause__, OSError)


def test_an_empty_module_is_a_plugin_that_offers_nothing(catalogue: Catalogue) -> None:
    assert len(Catalogue.load({"mine": ModuleType("empty")}).entries()) == len(catalogue.entries())
