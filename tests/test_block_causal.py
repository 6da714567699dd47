"""Models whose positions see their own block and those before it."""

from __future__ import annotations

from typing import Any

import pytest

from esdllm import BlockCausal, CheckpointError, ModelSpec


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"size": 0}, "size 0"),
        ({"size": -4}, "size -4"),
        ({"size": True}, "size True"),
        ({"size": 4.0}, r"size 4\.0"),
        ({"size": "4"}, "size '4'"),
        ({"size": 4, "grid": "end"}, "begin at 'end'"),
        ({"size": 4, "grid": None}, "begin at None"),
        ({"size": 4, "written": 0}, "blocks of 0"),
        ({"size": 4, "written": 3}, "blocks of 3"),
        ({"size": 4, "written": 8}, "blocks of 8"),
        ({"size": 4, "written": True}, "blocks of True"),
        ({"size": 4, "leads": 1}, "leads is 1"),
    ],
)
def test_a_form_of_attention_that_is_none_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        BlockCausal(**fields)


def test_keys_are_written_in_blocks_of_the_size_unless_told_otherwise() -> None:
    assert BlockCausal(8).write_size == 8
    assert BlockCausal(8, written=1).write_size == 1


def test_a_model_says_its_attention_by_its_type_alone() -> None:
    sizes = (1, 8, 1, 1, 8, 16, 32)
    assert ModelSpec("any", *sizes, mask_id=5, eos_id=4).attention is None
    with pytest.raises(CheckpointError, match="attention is 'block-causal'"):
        ModelSpec("any", *sizes, mask_id=5, eos_id=4, attention="block-causal")  # type: ignore[arg-type]
