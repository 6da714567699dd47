"""The pytest plugin of esdllm: fixtures for the tests of plugins. Nothing of esdllm is imported before a test asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from esdllm import Catalogue, Model

__all__ = ["esdllm_catalogue", "esdllm_check", "esdllm_tiny_model"]


@pytest.fixture(scope="session")
def esdllm_catalogue() -> Catalogue:
    """The catalogue of the installed plugins."""
    from esdllm import Catalogue

    return Catalogue.load()


@pytest.fixture(scope="session", params=["llada", "Dream"])
def esdllm_tiny_model(request: pytest.FixtureRequest, esdllm_catalogue: Catalogue) -> Model:
    """A tiny model with random weights on the CPU; a test that takes it runs once per family."""
    from esdllm.testing import tiny_model

    return tiny_model(request.param, catalogue=esdllm_catalogue)


@pytest.fixture
def esdllm_check(esdllm_catalogue: Catalogue) -> Callable[..., None]:
    """A function that checks an installed component by kind and name: `esdllm_check("skip", "by-depth", keep=[[0, 1]])`.

    What follows the name are options; a model family takes the config of a small model as `config`.
    """
    from esdllm.testing import CHECKS

    def check(kind: str, name: str, **options: object) -> None:
        from esdllm import ComponentConfig

        config = (options.pop("config"),) if kind == "model" else ()
        if kind == "preset":
            component: object = esdllm_catalogue.preset(name)
        else:
            component = esdllm_catalogue.build(kind, ComponentConfig(name, options))
        CHECKS[kind](component, *config)

    return check
