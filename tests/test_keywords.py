"""A keyword that a call does not take is refused: with what it is called here where another tool has it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import esdllm
from esdllm import Catalogue, ConfigError, DecodeConfig, Engine, Model, Pipeline, from_module, load_model
from esdllm.checkpoints.loading import describe_model, describe_weights, random_model
from esdllm.config.project import environment_sets

CALLS: list[Any] = [
    Pipeline,
    Pipeline.of,
    Pipeline.__call__,
    Pipeline.chat,
    Pipeline.stream,
    Pipeline.infill,
    Engine,
    Engine.build,
    Engine.generate,
    Model,
    load_model,
    from_module,
    random_model,
    describe_model,
    describe_weights,
    DecodeConfig,
    Catalogue.configure,
    esdllm.configure,
]

NAMES = [
    ("max_new_tokens", "gen_length"),
    ("max_tokens", "gen_length"),
    ("n_predict", "gen_length"),
    ("temperature", "sampler.temperature"),
    ("top_p", "sampler.top_p"),
    ("top_k", "sampler.top_k"),
    ("do_sample", "sampler.temperature, which is 0 for none"),
    ("steps", "unmasking.steps"),
    ("num_return_sequences", r"pipe\(\[prompt\] \* 3"),
    ("num_beams", r"nothing: .* pipe\(\[prompt\] \* 3"),
    ("torch_dtype", "dtype, of load_model"),
    ("trust_remote_code", "never run, so leave it out"),
    ("attn_implementation", "the attention backend: attention = auto"),
    ("load_in_4bit", "quantize, of load_model"),
    ("load_in_8bit", "quantize, of load_model"),
    ("revision", "snapshot_download"),
    ("stop", "Model.stop_ids"),
    ("repetition_penalty", "nothing: no sampler"),
    ("remasking", "unmasking.order"),
    ("mc_num", "mc_samples"),
    ("guidance_scale", "cfg_scale"),
    ("block_size", "block_length"),
    ("use_cache", "the preset"),
    ("batch_size", "batch, of pipe"),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__qualname__)
@pytest.mark.parametrize(("name", "here"), NAMES)
def test_a_name_of_another_tool_says_what_it_is_here(call: Any, name: str, here: str) -> None:
    with pytest.raises(ConfigError, match=f"{call.__qualname__} takes no '{name}'; here it is .*{here}"):
        call(None, "x", **{name: 1})


@pytest.mark.parametrize(("name", "here"), NAMES)
def test_settings_say_it_wherever_they_are_given(name: str, here: str, catalogue: Catalogue) -> None:
    told = f"'{name}'; here it is .*{here}"
    for given in ({"settings": {name: 1}}, {"sets": [f"{name}=1"]}):
        with pytest.raises(ConfigError, match=told):
            catalogue.configure("vanilla", **given)
    with pytest.raises(ConfigError, match=told):
        Pipeline.from_pretrained("tiny-llada", catalogue=catalogue, **{name: 1})
    with pytest.raises(ConfigError, match=told):
        DecodeConfig.from_dict({name: 1})
    with pytest.raises(ConfigError, match=f"here it is .*{here}"):
        environment_sets({f"ESDLLM_{name.upper()}": "1"})


@pytest.mark.parametrize(
    ("call", "name", "here"),
    [
        (
            Pipeline.__call__,
            "gen_length",
            r"a setting: gen_length, of Pipeline.from_pretrained, pipe.configured and --set",
        ),
        (Engine.generate, "block_length", "a setting: block_length"),
        (esdllm.configure, "gen_length", "a setting: gen_length"),
        (Pipeline.of, "preset", "preset, of Pipeline.from_pretrained"),
        (Pipeline.of, "device", "device, of load_model"),
        (Engine.build, "device_map", "device_map, of load_model"),
        (from_module, "quantize", "quantize, of load_model"),
        (load_model, "seed", r"seed: of pipe\(...\) and Engine.generate"),
    ],
)
def test_a_name_that_belongs_to_another_call_says_to_which(call: Any, name: str, here: str) -> None:
    with pytest.raises(ConfigError, match=f"{call.__qualname__} takes no '{name}'; here it is {here}"):
        call(None, "x", **{name: 1})


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__qualname__)
def test_a_name_that_nobody_has_is_refused_as_python_does_with_the_nearest(call: Any) -> None:
    with pytest.raises(TypeError, match=r"takes no 'sead'; .*known: "):
        call(None, "x", sead=1)


def test_the_signature_stays_what_it_is_for_help_and_editors() -> None:
    assert "quantize" in inspect.signature(load_model).parameters
    assert (load_model.__doc__ or "").startswith("Return a model")
    assert list(inspect.signature(Pipeline).parameters) == ["engine", "catalogue"]
    assert "gen_length" in inspect.signature(DecodeConfig).parameters
