"""Fixtures that several test files use."""

from __future__ import annotations

import pytest
from helpers import CASES
from hypothesis import settings

from esdllm import Catalogue, Model, load_model

settings.register_profile("esdllm", deadline=None)  # a shared machine is slow at times
settings.load_profile("esdllm")


@pytest.fixture(scope="session")
def catalogue() -> Catalogue:
    """The installed plugins' catalogue."""
    return Catalogue.load()


@pytest.fixture(scope="session")
def llada(catalogue: Catalogue) -> Model:
    """A random LLaDA of 256 tokens."""
    return load_model(CASES / "llada-0", "cpu", catalogue=catalogue)


@pytest.fixture(scope="session")
def dream(catalogue: Catalogue) -> Model:
    """A random Dream of 256 tokens."""
    return load_model(CASES / "dream-0", "cpu", catalogue=catalogue)
