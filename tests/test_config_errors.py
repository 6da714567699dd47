"""What a wrong setting gets: a message with its name, its value and what would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from esdllm import Catalogue, ConfigError, DecodeConfig, Engine, Model
from esdllm.runtime.components import Components

WRONG_COMPONENTS: list[tuple[dict[str, Any], str]] = [
    (
        {"unmasking": "top_k"},
        r"unknown unmasking 'top_k'; did you mean 'top-k'\? known: cai, .*, threshold, time-schedule, top-k",
    ),
    ({"cache": "gpu"}, r"unknown cache 'gpu'; known: dense, disk, int8, none, offloaded, sparse"),
    ({"observers": ["tracer"]}, r"unknown observers 'tracer'; there are none"),
    (
        {"refresh": {"block_refesh": 4}},
        r"refresh 'periodic' has no option 'block_refesh'; did you mean 'block_refresh'\?",
    ),
    ({"unmasking": {"treshold": 0.5}}, r"unmasking 'top-k' has no option 'treshold'"),
    (
        {"unmasking": {"threshold": 0.5}},
        "'top-k' has no option 'threshold'; it is an option of unmasking 'threshold': set unmasking.name = \"threshold\"",
    ),
    (
        {"unmasking": {"name": "threshold", "tokens_per_step": 2}},
        "'threshold' has no option 'tokens_per_step'; it is an option of unmasking 'top-k'",
    ),
    ({"attention": {"window": 3}}, "attention 'auto' has no option 'window'; there are none"),
    ({"refresh": {"prompt_refresh": "x"}}, "refresh 'periodic': option 'prompt_refresh': 'x' is not an int"),
    ({"refresh": {"prompt_refresh": 0.5}}, "option 'prompt_refresh': 0.5 is not an int"),
    ({"refresh": {"prompt_refresh": True}}, "option 'prompt_refresh': True is not an int"),
    ({"refresh": {"prompt_refresh": 0}}, "'prompt_refresh' must be >= 1: 0"),
    ({"refresh": {"block_refresh": 0}}, "'block_refresh' must be >= 1: 0"),
    ({"importance": {"alpha": True}}, "importance 'hybrid': option 'alpha': True is not a float"),
    ({"importance": {"alpha": 1.5}}, "'alpha' must be <= 1.0: 1.5"),
    (
        {"importance": {"site": "quary"}},
        r"option 'site': unknown value 'quary'; did you mean 'query'\? known: hidden, key, query, value",
    ),
    ({"sampler": {"temperature": -1}}, "'temperature' must be >= 0.0: -1.0"),
    ({"sampler": {"top_p": 0}}, "'top_p' must be > 0.0: 0.0"),
    ({"unmasking": {"tokens_per_step": 2, "steps": 4}}, "tokens_per_step = 2 and steps = 4 contradict; give one"),
    ({"unmasking": {"tokens_per_step": 0}}, "'tokens_per_step' must be >= 1: 0"),
    ({"unmasking": {"name": "threshold", "threshold": 2}}, "'threshold' must be <= 1.0: 2.0"),
    ({"unmasking": {"name": "time-schedule", "eps": 0.0}}, "eps = 0.0 must be between 0 and 1"),
    ({"cache": {"name": "sparse", "keep": 0.0}}, "cache 'sparse': 'keep' must be > 0.0: 0.0"),
    ({"skip": {"keep": [[0.1, 0.5]]}}, r"depths \[0.1\] must begin at 0, grow, and stay below 1"),
    ({"skip": {"keep": []}}, r"depths \[\] must begin at 0"),
    ({"skip": {"keep": [[0, 0.0]]}}, r"ratios \[0.0\] must be above 0 and at most 1"),
    ({"skip": {"keep": [[0, 1, 2]]}}, r"'keep' = .* must be a list of \[depth, ratio\]"),
    ({"skip": {"keep": [[0, "x"]]}}, "skip 'by-depth': option 'keep': 'x' is not a float"),
    ({"skip": {"keep": 5}}, "skip 'by-depth': option 'keep': 'int' object is not iterable"),
]


@pytest.mark.parametrize(("over", "message"), WRONG_COMPONENTS, ids=str)
def test_a_wrong_component_is_refused_by_name(catalogue: Catalogue, over: dict[str, Any], message: str) -> None:
    config = catalogue.configure("es-dllm", settings=over)
    with pytest.raises(ConfigError, match=message):
        Components.resolve(config, catalogue)


WRONG_SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"gen_lenght": 3}, r"unknown setting 'gen_lenght'; did you mean 'gen_length'\?"),
    ({"model": "llada"}, "unknown setting 'model'; .*known: "),
    ({"gen_length": "x"}, "setting 'gen_length': 'x' is not an int"),
    ({"gen_length": 0.5}, "setting 'gen_length': 0.5 is not an int"),
    ({"gen_length": True}, "setting 'gen_length': True is not an int"),
    ({"gen_length": {"x": 1}}, r"setting 'gen_length': \{'x': 1\} is not an int"),
    ({"gen_length": 0}, "'gen_length' must be >= 1: 0"),
    ({"block_length": -1}, "'block_length' must be >= 1: -1"),
    ({"cfg_scale": "strong"}, "setting 'cfg_scale': 'strong' is not a float"),
    ({"cfg_scale": -0.1}, "'cfg_scale' must be >= 0.0: -0.1"),
    ({"compile": 1}, "setting 'compile': 1 is not a bool"),
    ({"seed": -1}, "'seed' must be >= 0: -1"),
    ({"cache": 3}, "cache = 3: give a name, or a table of options"),
    ({"cache": {"name": 3}}, "a component is a name or a table with a name"),
    ({"observers": "trace"}, "observers = 'trace': give a list"),
    ({"observers": [3]}, "a component is a name or a table with a name, .* not 3"),
]


@pytest.mark.parametrize(("over", "message"), WRONG_SETTINGS, ids=str)
def test_a_wrong_setting_is_refused_by_name(catalogue: Catalogue, over: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        catalogue.configure("es-dllm", settings=over)


@pytest.mark.parametrize("preset", ["es-dlm", "es-dllm/llada-instruct/gsm9k"])
def test_an_unknown_preset_names_the_nearest(catalogue: Catalogue, preset: str) -> None:
    nearest = {"es-dlm": "es-dllm"}.get(preset, "es-dllm/llada-instruct/gsm8k")
    with pytest.raises(ConfigError, match=f"unknown preset '{preset}'; did you mean '{nearest}'"):
        catalogue.configure(preset)


@pytest.mark.parametrize("preset", [3, ["es-dllm"], {"name": "es-dllm"}])
def test_a_preset_that_is_no_name_is_refused(catalogue: Catalogue, preset: object) -> None:
    with pytest.raises(ConfigError, match=r"preset = .*: give a name"):
        catalogue.configure(settings={"preset": preset})


def test_without_a_preset_every_section_must_be_chosen(catalogue: Catalogue) -> None:
    with pytest.raises(ConfigError, match=r"no blocks is chosen: start from a preset, or give blocks = \{name = "):
        catalogue.configure()
    settings = {key: value for key, value in catalogue.configure("es-dllm").to_dict().items() if key != "attention"}
    with pytest.raises(ConfigError, match="no attention is chosen"):
        DecodeConfig.from_dict(settings)


@pytest.mark.parametrize("line", ["seed", "=3", "a.b.c=3", ".seed=3", "refresh.=3", ""])
def test_a_line_that_sets_nothing_is_refused(catalogue: Catalogue, line: str) -> None:
    with pytest.raises(ConfigError, match=f"cannot read the setting '{line}'; write setting=value or section.option="):
        catalogue.configure("es-dllm", sets=[line])


def test_a_file_that_is_missing_or_broken_is_named(catalogue: Catalogue, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*run\.toml: No such file"):
        catalogue.configure(file=tmp_path / "run.toml")
    (tmp_path / "run.toml").write_text("seed = 3\n[refresh\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"run\.toml is not TOML: .*line 2"):
        catalogue.configure(file=tmp_path / "run.toml")
    (tmp_path / "run.toml").write_bytes(b"seed = '\xff'\n")
    with pytest.raises(ConfigError, match=r"run\.toml is not TOML"):
        catalogue.configure(file=tmp_path / "run.toml")


CONTRADICTIONS = [
    ("es-dllm", ["cache=none"], 'early skipping reads keys that the cache store does not hold; choose cache = "dense"'),
    ("dual-cache", ["cache=none"], "a window of 'block' reads keys that the cache store does not hold"),
    ("prefix-cache", ["cache=none"], "a window of 'suffix' reads keys that the cache store does not hold"),
    ("vanilla", ["skip=by-depth", "refresh=dual-cache"], "reads keys that the cache store does not hold"),
    ("vanilla", ["unmasking.steps=5"], "unmasking steps = 5 cannot be shared evenly by 4 blocks; give a multiple"),
]


@pytest.mark.parametrize(("preset", "sets", "message"), CONTRADICTIONS, ids=str)
def test_a_contradiction_is_found_before_anything_runs(
    catalogue: Catalogue, llada: Model, preset: str, sets: list[str], message: str
) -> None:
    config = catalogue.configure(preset, sets=["gen_length=32", "block_length=8", *sets])
    with pytest.raises(ConfigError, match=message):
        Engine.build(llada, config, catalogue)


LONG = "9" * 400
BEYOND: list[tuple[str, str]] = [
    (f"cfg_scale={LONG}", "setting 'cfg_scale': 9{79}… has no room in 64 bits; give a smaller number"),
    (f"cfg_scale={'9' * 5000}", "cannot read the setting cfg_scale: it has a number of more than 4300 digits"),
    ("cfg_scale=inf", "setting 'cfg_scale': inf is no finite number"),
    ("cfg_scale=-inf", "setting 'cfg_scale': -inf is no finite number"),
    ("cfg_scale=nan", "setting 'cfg_scale': nan is no finite number"),
    ("cfg_scale=1e400", "setting 'cfg_scale': inf is no finite number"),
    (f"seed={LONG}", "setting 'seed': 9{79}… has no room in 64 bits"),
    (f"seed={2**63}", f"setting 'seed': {2**63} has no room in 64 bits"),
    (f"seed=-{LONG}", "setting 'seed': -9{78}… has no room in 64 bits"),
    (f"refresh.block_refresh={LONG}", "refresh 'periodic': option 'block_refresh': 9{79}… has no room"),
    (f"importance.alpha={LONG}", "importance 'hybrid': option 'alpha': 9{79}… has no room"),
    ("importance.alpha=nan", "importance 'hybrid': option 'alpha': nan is no finite number"),
    ("sampler.temperature=1e999", "sampler 'gumbel': option 'temperature': inf is no finite number"),
    (f"gen_length={'[' * 3000}", "cannot read the setting gen_length: its brackets are nested too deeply"),
]


@pytest.mark.parametrize(("line", "message"), BEYOND, ids=[f"{line:.30}" for line, _ in BEYOND])
def test_a_number_that_no_tensor_can_hold_is_refused_in_a_short_line(
    catalogue: Catalogue, line: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        Components.resolve(catalogue.configure("es-dllm", sets=[line]), catalogue)
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("gen_length", [512, 10**6, 2**63 - 1])
def test_an_answer_longer_than_the_context_is_refused_at_once(
    models: dict[str, Model], catalogue: Catalogue, gen_length: int
) -> None:
    model = models["llada-0"]
    config = catalogue.configure("es-dllm", settings={"gen_length": max(gen_length, model.spec.context)})
    with pytest.raises(ConfigError, match="leaves no room for a prompt in the model's context of"):
        Engine.build(model, config, catalogue)
