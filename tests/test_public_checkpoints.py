"""The public checkpoints that the families know of: what is told of them fits what the families read."""

from __future__ import annotations

import re

import pytest

from esdllm import Catalogue
from esdllm.checkpoints.families import families, family_of
from esdllm.checkpoints.published import known_checkpoints, told_of
from esdllm.checkpoints.told import OVER, Told
from esdllm.measure.cards import presets_that_suit
from esdllm.plugins.offers import Offers


@pytest.fixture(scope="module")
def offered(catalogue: Catalogue) -> dict[str, Offers]:
    return {name: Offers.of(family) for name, family in families(catalogue).items()}


def test_every_family_says_what_was_verified_and_has_presets_that_suit(
    catalogue: Catalogue, offered: dict[str, Offers]
) -> None:
    for name, offers in offered.items():
        assert "not tried" in offers.verified, name
        assert offers.suits, name
        for one in offers.suits:
            assert presets_that_suit(catalogue, [one])[0][0].startswith(one), (name, one)


def test_every_hub_id_is_one_and_known_to_one_family(catalogue: Catalogue, offered: dict[str, Offers]) -> None:
    known = known_checkpoints(catalogue)
    assert len(known) == sum(len(offers.published) for offers in offered.values()) > 30
    for name, one in known.items():
        assert re.fullmatch(r"[\w-]+/[\w.-]+", name)
        assert one.published.parameters > (one.published.active or 0) > -1
        assert told_of(None, name, catalogue).family == one.family
        assert Told.of(one.told).over.keys() <= OVER.keys()


def test_the_attention_that_is_told_is_that_of_the_familys_geometries(
    catalogue: Catalogue, offered: dict[str, Offers]
) -> None:
    """A checkpoint with other blocks than its family's says so, by its name and by what its config.json lacks."""
    for name, offers in offered.items():
        sizes = {
            family_of(name, config, catalogue, Told(name)).spec(config).attention
            for config in offers.geometries.values()
        }
        usual = {None if attention is None else attention.size for attention in sizes}
        for hub_id, one in offers.published.items():
            told = Told.of(f"{name},{one.lacks}" if one.lacks else name).over.get("block_size")
            if told is not None:
                assert one.block_size == told == int(hub_id.rpartition("-b")[2])
            elif usual:
                assert one.block_size in usual, hub_id
