"""A keyword that a call does not take is refused: with what it is called here where another tool has it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from esdllm import ConfigError, Engine, Pipeline, load_model
from esdllm.checkpoints.loading import random_model

CALLS: list[Any] = [
    Pipeline.__call__,
    Pipeline.chat,
    Pipeline.stream,
    Pipeline.infill,
    Engine.generate,
    load_model,
    random_model,
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("max_new_tokens", "gen_length"),
        ("max_tokens", "gen_length"),
        ("n_predict", "gen_length"),
        ("temperature", "sampler.temperature"),
        ("top_p", "sampler.top_p"),
        ("steps", "unmasking.steps"),
        ("num_return_sequences", r"pipe\(\[prompt\] \* 3"),
        ("torch_dtype", "dtype, of load_model"),
        ("trust_remote_code", "never run, so leave it out"),
    ],
)
def test_a_name_of_another_tool_says_what_it_is_here(call: Any, name: str, here: str) -> None:
    with pytest.raises(ConfigError, match=f"{call.__qualname__} takes no '{name}'; here it is .*{here}"):
        call(None, "x", **{name: 1})


@pytest.mark.parametrize("call", CALLS)
def test_a_name_that_nobody_has_is_refused_as_python_does_with_the_nearest(call: Any) -> None:
    with pytest.raises(TypeError, match=r"takes no 'sead'; .*known: "):
        call(None, "x", sead=1)


def test_the_signature_stays_what_it_is_for_help_and_editors() -> None:
    assert "quantize" in inspect.signature(load_model).parameters
    assert (load_model.__doc__ or "").startswith("Return a model")
