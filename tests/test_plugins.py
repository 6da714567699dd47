"""The loader's rules: what is found, what clashes, what is blocked, and whose fault it is."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, SimpleNamespace

import attrs
import pytest
from helpers import offers

import esdllm.plugins.loader
from esdllm import INTERFACE, Catalogue, PluginError, Preset, hookimpl
from esdllm import __version__ as VERSION
from esdllm.plugins.loader import load_plugins

OFFERING = ["esdllm-backends", "esdllm-models", "esdllm-policies"]
"""plugins of the distribution that offer components"""
EMPTY = Preset("nothing", {})


@attrs.frozen
class Offered:
    """A component that does nothing."""


class Point(SimpleNamespace):
    """An entry point of a distribution that is not installed."""

    def __init__(self, name: str, distribution: str, module: ModuleType | Exception) -> None:
        super().__init__(name=name, value=f"{name}.module", module=module)
        self.dist = SimpleNamespace(name=distribution, version="1.2")

    def load(self) -> ModuleType:
        if isinstance(self.module, Exception):
            raise self.module
        return self.module


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes entry points the only installed ones."""

    def install(*points: Point) -> None:
        monkeypatch.setattr(
            esdllm.plugins.loader, "entry_points", lambda group: list(points) if group == "esdllm" else []
        )

    return install


@pytest.fixture(autouse=True)
def _nothing_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESDLLM_DISABLE_PLUGINS", raising=False)


def test_the_first_party_packages_are_found_like_anybody_elses(catalogue: Catalogue) -> None:
    assert sorted({entry.origin.plugin for entry in catalogue.entries()}) == OFFERING
    assert {entry.origin.distribution for entry in catalogue.entries()} == {"esdllm"}
    assert "plugin 'esdllm-backends' of esdllm 0." in str(catalogue.entry("cache", "dense").origin)


def test_a_duplicate_plugin_name_names_both_distributions(install) -> None:
    install(Point("fast", "fast-one", ModuleType("a")), Point("fast", "fast-two", ModuleType("b")))
    with pytest.raises(PluginError, match="two plugins are named 'fast': one of fast-one and one of fast-two"):
        load_plugins()


def test_blocking_a_duplicate_name_blocks_both(install) -> None:
    install(Point("fast", "fast-one", ModuleType("a")), Point("fast", "fast-two", ModuleType("b")))
    assert load_plugins(disabled=["fast"]).blocked == ("fast",)


def test_an_editable_install_that_lists_an_entry_point_twice_is_no_clash(install) -> None:
    module = offers("esdllm_presets", {"fast": EMPTY})
    install(Point("fast", "fast-one", module), Point("fast", "fast-one", module))
    assert Catalogue.load().names("preset") == ["fast"]


def test_a_registered_plugin_may_not_take_an_installed_name() -> None:
    with pytest.raises(PluginError, match="two plugins are named 'esdllm-models': one of esdllm and a registered one"):
        load_plugins({"esdllm-models": ModuleType("a")})


def test_one_module_under_two_names_is_refused() -> None:
    module = ModuleType("a")
    with pytest.raises(PluginError, match=r"plugin 'second' .* cannot be registered: .*register each plugin once"):
        load_plugins({"first": module, "second": module})


@pytest.mark.parametrize(
    "fault", [ModuleNotFoundError("No module named 'triton'"), SyntaxError("bad"), OSError("disk")]
)
def test_a_plugin_that_cannot_be_imported_is_named_and_chained(install, fault: Exception) -> None:
    install(Point("fast", "fast-one", fault))
    with pytest.raises(PluginError) as caught:
        load_plugins()
    assert str(caught.value).startswith("plugin 'fast' of fast-one 1.2 (fast.module) cannot be imported: ")
    assert f"{type(fault).__name__}: {fault}" in str(caught.value)
    assert "ESDLLM_DISABLE_PLUGINS=fast" in str(caught.value)
    assert caught.value.__cause__ is fault


def test_a_broken_plugin_can_be_left_out(install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(Point("fast", "fast-one", ImportError("broken")), Point("good", "good-one", ModuleType("good")))
    monkeypatch.setenv("ESDLLM_DISABLE_PLUGINS", "fast")
    assert [name for name, _ in load_plugins().manager.list_name_plugin()] == ["good"]


def test_a_misspelt_hook_names_the_nearest() -> None:
    with pytest.raises(PluginError, match=r"unknown hook 'esdllm_importance_scorer'; did you mean '.*_scorers'\?"):
        load_plugins({"mine": offers("esdllm_importance_scorer", {})})


def test_a_hook_without_its_marker_is_refused() -> None:
    module = ModuleType("mine")
    module.esdllm_presets = dict
    with pytest.raises(PluginError, match=r"plugin 'mine' .* defines 'esdllm_presets' without @esdllm.hookimpl; add"):
        load_plugins({"mine": module})


def test_a_hook_that_wants_arguments_is_refused() -> None:
    @hookimpl
    def wants(config: object) -> object:
        return {}

    module = ModuleType("mine")
    module.esdllm_presets = wants
    with pytest.raises(PluginError, match=r"(?s)plugin 'mine' .* implements a hook wrongly: .*config"):
        load_plugins({"mine": module})


@pytest.mark.parametrize("variable", ["esdllm-models", " esdllm-models ,", "esdllm-models,esdllm-backends"])
def test_the_variable_blocks_by_name(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("ESDLLM_DISABLE_PLUGINS", variable)
    catalogue = Catalogue.load()
    assert catalogue.names("model") == []
    assert catalogue.blocked == tuple(name.strip() for name in variable.split(",") if name.strip())
    assert bool(catalogue.names("cache")) is ("backends" not in variable)


def test_an_unknown_name_in_the_variable_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESDLLM_DISABLE_PLUGINS", "esdllm-model")
    with pytest.raises(PluginError, match=r"cannot disable .*'esdllm-model', .*did you mean 'esdllm-models'"):
        Catalogue.load()


def test_an_explicit_list_goes_before_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESDLLM_DISABLE_PLUGINS", "esdllm-models")
    assert {"Dream", "llada"} <= set(Catalogue.load(disabled=[]).names("model"))


def test_a_registered_plugin_can_be_blocked_too() -> None:
    module = offers("esdllm_presets", {"fast": EMPTY})
    assert "fast" not in Catalogue.load({"mine": module}, disabled=["mine"]).names("preset")


def test_nothing_installed_leaves_the_registered_alone() -> None:
    module = offers("esdllm_presets", {"fast": EMPTY})
    entries = Catalogue.load({"mine": module}, installed=False).entries()
    assert [(entry.kind, entry.name) for entry in entries] == [("preset", "fast")]


def test_two_components_of_one_kind_and_name_name_both_origins() -> None:
    with pytest.raises(PluginError) as caught:
        Catalogue.load({"mine": offers("esdllm_cache_stores", {"dense": Offered})})
    message = str(caught.value)
    assert "two components of kind cache are named 'dense'" in message
    assert "plugin 'esdllm-backends' of esdllm" in message
    assert "plugin 'mine' of (registered in this process)" in message


def test_one_name_may_serve_two_kinds() -> None:
    catalogue = Catalogue.load({"mine": offers("esdllm_attention_backends", {"dense": Offered})})
    assert catalogue.entry("attention", "dense").origin.plugin == "mine"
    assert catalogue.entry("cache", "dense").origin.plugin == "esdllm-backends"


def test_every_load_makes_a_fresh_manager() -> None:
    first = load_plugins({"mine": offers("esdllm_presets", {"fast": EMPTY})})
    second = load_plugins()
    assert first.manager is not second.manager
    assert second.manager.get_plugin("mine") is None
    assert sorted(second.origins) == sorted([*OFFERING, "esdllm-extras"])


SCORER = '''
import attrs
from esdllm import hookimpl


@attrs.frozen
class Backwards:
    """The rightmost position first."""

    site = "hidden"
    keeps_history = False

    def score(self, view):
        return view.positions.float()


@hookimpl
def esdllm_importance_scorers():
    return {"backwards": Backwards}
'''


@pytest.fixture
def installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A distribution as pip leaves it in site-packages: a module, and a dist-info folder with its entry point."""
    (tmp_path / "backwards_scorer.py").write_text(SCORER, encoding="utf-8")
    info = tmp_path / "backwards_scorer-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: backwards-scorer\nVersion: 0.3\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[esdllm]\nbackwards = backwards_scorer\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("backwards_scorer", None)


@pytest.mark.usefixtures("installed_package")
def test_an_installed_package_is_found_through_its_entry_point() -> None:
    entry = Catalogue.load().entry("importance", "backwards")
    assert str(entry.origin) == "plugin 'backwards' of backwards-scorer 0.3"
    assert entry.summary == "The rightmost position first."


@pytest.mark.usefixtures("installed_package")
def test_a_blocked_package_is_not_even_imported() -> None:
    assert "backwards" not in Catalogue.load(disabled=["backwards"]).names("importance")
    assert "backwards_scorer" not in sys.modules


def test_an_installed_package_that_is_broken_is_named(installed_package: Path) -> None:
    (installed_package / "backwards_scorer.py").write_text("import no_such_module_at_all\n", encoding="utf-8")
    with pytest.raises(PluginError, match=r"plugin 'backwards' of backwards-scorer 0.3 .* cannot be imported: Module"):
        Catalogue.load()


def test_an_entry_point_without_a_distribution_is_named_all_the_same(install) -> None:
    install(EntryPoint("loose", "no_such_module_at_all", "esdllm"))
    with pytest.raises(PluginError, match=r"plugin 'loose' .* cannot be imported: ModuleNotFoundError"):
        load_plugins()


# ------------------------------------------------------------------------------------------- the interface's version


def stating(version: object) -> ModuleType:
    module = offers("esdllm_presets", {"fast": EMPTY})
    module.esdllm_interface = version
    return module


def test_a_plugin_of_this_interface_and_one_that_states_none_are_taken(install) -> None:
    install(Point("fast", "fast-one", stating(INTERFACE)), Point("plain", "plain-one", ModuleType("plain")))
    assert Catalogue.load().names("preset") == ["fast"]


@pytest.mark.parametrize(
    ("stated", "mend"),
    [
        (INTERFACE - 1, "upgrade fast-one, or install an older esdllm"),
        (INTERFACE + 1, "upgrade esdllm, or install an older fast-one"),
    ],
)
def test_a_plugin_of_another_interface_is_refused_with_both_versions_and_what_to_do(install, stated, mend) -> None:
    install(Point("fast", "fast-one", stating(stated)))
    with pytest.raises(PluginError) as caught:
        load_plugins()
    assert str(caught.value) == (
        f"plugin 'fast' of fast-one 1.2 was built for interface {stated} of esdllm, and this is esdllm {VERSION} with "
        f"interface {INTERFACE}; {mend}, or leave it out with ESDLLM_DISABLE_PLUGINS=fast"
    )
    assert load_plugins(disabled=["fast"]).blocked == ("fast",)


def test_an_interface_that_is_no_number_is_refused() -> None:
    with pytest.raises(PluginError, match=r"plugin 'mine' .* states esdllm_interface = '1'; give the version's number"):
        load_plugins({"mine": stating("1")})


def test_a_plugin_that_misses_a_name_of_esdllm_may_be_built_for_another(install) -> None:
    install(Point("fast", "fast-one", ImportError("cannot import name 'Gone' from 'esdllm'", name="esdllm")))
    with pytest.raises(PluginError, match="it may be built for another esdllm: upgrade it; mend or uninstall it"):
        load_plugins()
