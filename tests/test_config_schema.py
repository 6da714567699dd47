"""The JSON schema of a configuration: it takes what esdllm takes, and refuses what single options refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from projects import FILE, Run

from esdllm import Catalogue, configure
from esdllm.config import SECTIONS, read_toml
from esdllm.plugins.schema import configuration_schema

CATALOGUE = Catalogue.load()
SCHEMA = configuration_schema(CATALOGUE)
PLAIN = (bool, int, float, str, list, tuple, dict)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    json.dumps(SCHEMA)


def valid(instance: Any) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(json.dumps(instance)))


@pytest.mark.parametrize("preset", CATALOGUE.names("preset"))
def test_every_preset_is_valid_by_the_schema(preset: str) -> None:
    assert valid(configure(preset).to_dict())
    assert valid({"preset": preset, "profiles": {"fast": configure(preset).to_dict()}})


@pytest.mark.parametrize(
    "text", [FILE, 'importance = {name = "mix", parts = ["random", {name = "hybrid", weight = 2}]}']
)
def test_what_validate_finds_good_is_valid_by_the_schema(text: str, folder: Path, run: Run) -> None:
    (folder / "esdllm.toml").write_text(text)
    assert run("config", "validate")[0] == 0
    assert valid(read_toml(folder / "esdllm.toml"))


def test_every_component_and_option_at_its_default_is_valid_by_the_schema() -> None:
    for entry in CATALOGUE.entries():
        if entry.kind in SECTIONS:
            options = {one.name: one.default for one in entry.options if isinstance(one.default, PLAIN)}
            given = {key: list(value) if isinstance(value, tuple) else value for key, value in options.items()}
            assert valid({entry.kind: entry.name})
            assert valid({entry.kind: {"name": entry.name, **given}}), entry
            assert not given or valid({entry.kind: given}), entry


@pytest.mark.parametrize(
    "wrong",
    [
        {"gen_lenght": 3},
        {"gen_length": 0},
        {"gen_length": "x"},
        {"gen_length": True},
        {"compile": 1},
        {"preset": "es-dlm"},
        {"cache": "gpu"},
        {"cache": 3},
        {"refresh": {"name": "periodic", "block_refesh": 3}},
        {"refresh": {"block_refesh": 3}},
        {"refresh": {"name": "periodic", "block_refresh": 0}},
        {"refresh": {"name": "periodic", "block_refresh": 1.5}},
        {"unmasking": {"name": "threshold", "threshold": 1.1}},
        {"unmasking": {"name": "top-k", "threshold": 0.5}},
        {"sampler": {"name": "gumbel", "top_p": 0}},
        {"importance": {"name": "hybrid", "site": "quary"}},
        {"importance": {"name": "mix", "parts": ["randm"]}},
        {"importance": {"name": "mix", "parts": [{"weight": 2}]}},
        {"importance": {"name": "mix", "parts": [{"name": "random", "weight": 0}]}},
        {"observers": ["nobody"]},
        {"skip": {"name": "by-depth", "keep": 5}},
        {"skip": {"name": "by-depth", "keep": [["x", 1]]}},
        {"profiles": {"fast": {"sede": 1}}},
        {"profiles": {"fast": {"profiles": {}}}},
    ],
    ids=str,
)
def test_what_is_refused_is_invalid_by_the_schema(wrong: dict[str, Any]) -> None:
    assert not valid(wrong)


def test_the_schema_explains_every_setting_and_option() -> None:
    for name, schema in SCHEMA["properties"].items():
        assert schema["description"], name
    for kind in SECTIONS:
        for choice in SCHEMA["$defs"][kind]["oneOf"]:
            assert choice["title"]
            for name, schema in choice.get("properties", {}).items():
                assert schema.get("description") or schema.get("anyOf"), (kind, choice["title"], name)


def test_the_command_prints_the_schema(run: Run) -> None:
    code, out, err = run("config", "schema")
    assert (code, json.loads(out), err) == (0, json.loads(json.dumps(SCHEMA)), "")
