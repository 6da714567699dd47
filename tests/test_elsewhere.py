"""Components that are not installed: the package that offers them is named."""

from __future__ import annotations

from pathlib import Path

import pytest

import esdllm
from esdllm import Catalogue, ConfigError, configure
from esdllm.config import read_toml
from esdllm.plugins.catalogue import KINDS
from esdllm.plugins.elsewhere import offer

CATALOGUE = Catalogue.load()


@pytest.fixture
def without_examples(monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """A catalogue of what this distribution offers, whatever examples are installed beside it."""
    from importlib.metadata import PackageNotFoundError

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr("esdllm.plugins.elsewhere.version", missing)
    examples = {entry.origin.plugin for entry in CATALOGUE.entries() if "example" in entry.origin.distribution}
    return Catalogue.load(disabled=sorted(examples))


def test_a_component_that_is_not_installed_names_the_package(without_examples: Catalogue) -> None:
    config = configure(settings={"importance": "recency"})
    with pytest.raises(ConfigError) as caught:
        without_examples.build("importance", config.importance)
    assert str(caught.value) == (
        "unknown importance 'recency'; the package esdllm-example-recency offers it (examples/plugins in esdllm's repository)"
    )


def test_a_model_type_that_is_not_installed_names_the_package(without_examples: Catalogue, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "a2d-olmo2"}')
    with pytest.raises(
        esdllm.CheckpointError, match="'a2d-olmo2' is not implemented; the package esdllm-example-olmo2 offers it"
    ):
        esdllm.describe_model(str(tmp_path), without_examples)


def test_a_package_that_is_installed_but_left_out_is_not_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esdllm.plugins.elsewhere.version", lambda name: "1.0")
    assert offer("importance", "recency") == (
        "esdllm-example-recency offers it, which is installed but left out by ESDLLM_DISABLE_PLUGINS"
    )
    assert offer("importance", "hybrid") is None


def test_the_packages_that_errors_name_are_the_examples() -> None:
    """Every kind is one, every package has its source here, and none offers what this distribution does."""
    root = Path(__file__).parent.parent
    known = read_toml(root / "esdllm" / "plugins" / "known_plugins.toml")
    sources = known.pop("source")
    for kind, offered in known.items():
        assert kind in KINDS
        for name, package in offered.items():
            assert (root / "examples" / "plugins" / package / "pyproject.toml").is_file(), package
            assert package in sources
            found = [entry for entry in CATALOGUE.entries() if (entry.kind, entry.name) == (kind, name)]
            assert all(entry.origin.distribution == package for entry in found)


def test_a_name_that_a_plugin_may_have_which_was_left_out_says_so_and_suggests_no_other() -> None:
    catalogue = Catalogue.load(disabled=["esdllm-policies"])
    with pytest.raises(
        ConfigError, match="ESDLLM_DISABLE_PLUGINS leaves out esdllm-policies, which may offer it"
    ) as said:
        catalogue.entry("unmasking", "top-k")
    assert "did you mean" not in str(said.value)
