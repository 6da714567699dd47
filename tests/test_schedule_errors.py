"""What a planner of somebody else's that breaks its contract gets."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from helpers import offers

from esdllm import Block, Catalogue, ConfigError, Engine, Model


@attrs.frozen
class Cut:
    """A block schedule that returns what it is told."""

    shift: int = 0
    extra: int = 0

    def next_block(self, start: int, end: int, block_length: int) -> Block:
        return Block(start + self.shift, min(start + block_length, end) + self.extra)


@attrs.frozen
class Keep:
    """A skip schedule that returns what it is told."""

    counts: tuple[int, ...] = ()

    def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
        return self.counts


@attrs.frozen
class Moody:
    """A skip schedule that drops at another layer in windows of other lengths than the usual ones."""

    usual: tuple[int, ...] = ()

    def keep_counts(self, n_layers: int, window: int, committed: int, block: int) -> tuple[int, ...]:
        layer = 2 if window in self.usual else 5
        return (window,) * layer + (1,) * (n_layers - layer)


@attrs.frozen
class Plan:
    """An unmasking policy that plans what it is told."""

    plan: tuple[int, ...] = ()

    def counts(self, masked: int, blocks: int) -> tuple[int, ...]:
        return self.plan


BROKEN: list[tuple[str, str, type, dict[str, Any], str]] = [
    ("blocks", "esdllm_block_schedules", Cut, {"shift": -1}, r"cut \(1, 6\) out of \(2, 10\); a block lies within it"),
    ("blocks", "esdllm_block_schedules", Cut, {"extra": 9}, r"cut \(2, 15\) out of \(2, 10\)"),
    ("blocks", "esdllm_block_schedules", Cut, {"extra": -4}, r"cut \(2, 2\) out of \(2, 10\)"),
    ("skip", "esdllm_skip_schedules", Keep, {"counts": [3, 4] + [1] * 6}, "never growing, between 1 and the window"),
    ("skip", "esdllm_skip_schedules", Keep, {"counts": [1] * 7}, r"keep counts \(1, .*\) for 8 layers"),
    ("skip", "esdllm_skip_schedules", Keep, {"counts": [0] * 8}, "between 1 and the window"),
    ("skip", "esdllm_skip_schedules", Keep, {"counts": [99] * 8}, "and a window of 4; give one per layer"),
    (
        "unmasking",
        "esdllm_unmasking_policies",
        Plan,
        {"plan": [1, 1]},
        r"planned \(1, 1\) for 4 masks; counts are >= 0",
    ),
    ("unmasking", "esdllm_unmasking_policies", Plan, {"plan": [5, -1]}, r"planned \(5, -1\) for 4 masks"),
]


def test_a_schedule_that_drops_at_other_layers_in_rare_windows_is_refused(llada: Model) -> None:
    catalogue = Catalogue.load({"mine": offers("esdllm_skip_schedules", {"moody": Moody})})
    lengths = {"gen_length": 16, "block_length": 4, "refresh": "prefix-cache"}  # windows of 16, 12, 8 and 4
    for usual in ([4, 5, 6, 7, 18], [4, 5, 6, 7, 18, 16, 12, 8]):
        config = catalogue.configure("es-dllm", settings={**lengths, "skip": {"name": "moody", "usual": usual}})
        if 16 in usual:
            assert Engine.build(llada, config, catalogue)
            continue
        with pytest.raises(
            ConfigError, match=r"drops positions at layer 5 of a window of \d+, but not in those of one to"
        ):
            Engine.build(llada, config, catalogue)


@pytest.mark.parametrize(("section", "hook", "factory", "options", "message"), BROKEN, ids=str)
def test_a_plan_that_breaks_its_contract_is_refused(
    llada: Model, section: str, hook: str, factory: type, options: dict[str, Any], message: str
) -> None:
    catalogue = Catalogue.load({"mine": offers(hook, {"broken": factory})})
    settings = {"gen_length": 8, "block_length": 4, section: {"name": "broken", **options}}
    config = catalogue.configure("es-dllm", settings=settings)
    with pytest.raises(ConfigError, match=message):
        Engine.build(llada, config, catalogue)
