"""Configuration: where a setting comes from, that it goes round, and what a wrong one gets."""

from __future__ import annotations

import string
import tempfile
from pathlib import Path
from typing import Any

import attrs
import pytest
from helpers import offers
from hypothesis import given
from hypothesis import strategies as st
from sampling import examples

from esdllm import Catalogue, ComponentConfig, ConfigError, DecodeConfig, Engine, Model, configure
from esdllm.config import SECTIONS, parse_set, read_toml
from esdllm.runtime.components import Components

CATALOGUE = Catalogue.load()
PRESETS = CATALOGUE.names("preset")
COMPONENTS = [entry for entry in CATALOGUE.entries() if entry.kind != "preset"]


def resolve(preset: str = "es-dllm", **over: Any) -> Components:
    return Components.resolve(CATALOGUE.configure(preset, settings=over), CATALOGUE)


text = st.text(string.ascii_letters + string.digits + ' \n\t"\\=[]#éß水', max_size=8)
scalars = st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False, allow_infinity=False) | text
values = scalars | st.lists(scalars, max_size=3) | st.tuples(st.tuples(st.floats(0, 1), st.integers(0, 3)))
names = st.text(string.ascii_lowercase + "_", min_size=1, max_size=8).filter(lambda name: name != "name")
components = st.builds(ComponentConfig, names, st.dictionaries(names, values, max_size=3))
overrides = st.fixed_dictionaries(
    {},
    optional={
        **{section: components.map(ComponentConfig.to_dict) for section in SECTIONS},
        "gen_length": st.integers(1, 2**20),
        "block_length": st.integers(1, 2**20),
        "seed": st.integers(0, 2**62),
        "cfg_scale": st.floats(0, 9),
        "compile": st.booleans(),
        "observers": st.lists(components.map(ComponentConfig.to_dict), max_size=2),
    },
)


@given(st.sampled_from(PRESETS), overrides)
def test_a_configuration_goes_through_a_dict_and_back(preset: str, over: dict[str, Any]) -> None:
    config = CATALOGUE.configure(preset, settings=over)
    assert DecodeConfig.from_dict(config.to_dict()) == config
    assert DecodeConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@examples(60)
@given(st.sampled_from(PRESETS), overrides)
def test_a_configuration_goes_through_toml_and_back(preset: str, over: dict[str, Any]) -> None:
    config = CATALOGUE.configure(preset, settings=over)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.toml"
        path.write_text(config.to_toml(), encoding="utf-8")
        assert CATALOGUE.configure(file=path) == config
        assert read_toml(path) == config.to_dict()


def test_what_toml_cannot_write_is_an_error() -> None:
    config = CATALOGUE.configure("es-dllm", settings={"unmasking": {"steps": None}})
    with pytest.raises(ConfigError, match=r"cannot be written as TOML: .*NoneType.*leave that option out"):
        config.to_toml()


def test_later_goes_over_earlier(tmp_path: Path) -> None:
    """Preset, file, mapping, `sets`: each one's last word is where no later one speaks."""
    file = tmp_path / "run.toml"
    file.write_text("gen_length = 10\nblock_length = 10\nseed = 10\n[refresh]\nprompt_refresh = 10\n", encoding="utf-8")
    config = CATALOGUE.configure(
        "es-dllm/llada-instruct/gsm8k",
        file,
        settings={"block_length": 20, "seed": 20, "refresh": {"block_refresh": 20}},
        sets=["seed=30", "refresh.block_refresh=30", "seed=31"],
    )
    assert (config.gen_length, config.block_length, config.seed) == (10, 20, 31)
    assert config.refresh == ComponentConfig("periodic", {"prompt_refresh": 10, "block_refresh": 30})
    assert config.skip == ComponentConfig("by-depth")


def test_a_file_may_name_its_own_base_and_the_argument_goes_before_it(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('preset = "vanilla"\ngen_length = 10\n', encoding="utf-8")
    assert CATALOGUE.configure(file=file).refresh.name == "every-step"
    assert CATALOGUE.configure("dual-cache", file=file).refresh.name == "dual-cache"
    assert CATALOGUE.configure(file=file).gen_length == 10


def test_the_shorthand_starts_from_es_dllm() -> None:
    assert configure(settings={"seed": 3}) == CATALOGUE.configure("es-dllm", settings={"seed": 3})


def test_a_new_name_drops_the_old_options_and_the_same_name_keeps_them() -> None:
    base = "es-dllm/dream-base/gsm8k"
    kept = CATALOGUE.configure(base, sets=["refresh.name=periodic", "refresh.block_refresh=2"])
    assert kept.refresh.options == {"prompt_refresh": 128, "block_refresh": 2}
    assert CATALOGUE.configure(base, sets=["refresh=periodic"]).refresh == CATALOGUE.configure(base).refresh
    for change in ("refresh=dual-cache", "refresh.name=dual-cache"):
        assert CATALOGUE.configure(base, sets=[change]).refresh == ComponentConfig("dual-cache")


def test_configuring_never_changes_a_preset() -> None:
    before = CATALOGUE.configure("es-dllm/dream-base/gsm8k")
    CATALOGUE.configure("es-dllm/dream-base/gsm8k", sets=["refresh.block_refresh=2", "sampler.top_k=1"])
    assert CATALOGUE.configure("es-dllm/dream-base/gsm8k") == before


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("seed=3", {"seed": 3}),
        (" seed = 3 ", {"seed": 3}),
        ("compile=true", {"compile": True}),
        ("cache=none", {"cache": "none"}),
        ('cache="none"', {"cache": "none"}),
        ("skip.keep=[[0, 1.0], [0.5, 0.5]]", {"skip": {"keep": [[0, 1.0], [0.5, 0.5]]}}),
        ("mine.equation=a=b", {"mine": {"equation": "a=b"}}),
    ],
)
def test_a_setting_on_one_line_is_toml_or_a_bare_word(line: str, expected: dict[str, Any]) -> None:
    assert parse_set(line) == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_and_plans(preset: str, llada: Model) -> None:
    config = CATALOGUE.configure(preset)
    assert Engine.build(llada, config, CATALOGUE).config == config
    assert CATALOGUE.entry("preset", preset).summary


PUBLISHED = """
llada-instruct  gsm8k      64 16  256  64
llada-instruct  humaneval  64  4  512  64
llada-instruct  mbpp       64  4  512  64
llada-instruct  bbh        64  4  256  64
llada-instruct  math      256  8  256 256
dream-instruct  gsm8k      64  8  256  64
dream-instruct  bbh        64  8  256  64
dream-instruct  humaneval  64  2  512  64
dream-instruct  mbpp      256  2  512  64
dream-instruct  math      256  4  256 256
llada-base      humaneval 128  4  512  64
llada-base      mbpp      256  2  512  64
llada-base      gsm8k      64  4  256  64
llada-base      bbh        64  4  256  64
llada-base      math      256  4  256 256
dream-base      humaneval  64  2  512  64
dream-base      gsm8k     128  4  256  64
dream-base      mbpp      256  4  512  64
dream-base      bbh        64  4  256  64
dream-base      math      256  8  256 256
"""


@pytest.mark.parametrize("line", PUBLISHED.strip().splitlines(), ids=lambda line: "/".join(line.split()[:2]))
def test_published_settings_are_those_of_the_paper(line: str) -> None:
    model, task, *numbers = line.split()
    prompt, block, gen_length, block_length = map(int, numbers)
    found = resolve(f"es-dllm/{model}/{task}")
    assert (found.refresh.prompt_refresh, found.refresh.block_refresh) == (prompt, block)
    assert (found.config.gen_length, found.config.block_length) == (gen_length, block_length)
    assert found.skip.keep == ((0.0, 1.0), (0.125, 0.5), (0.25, 0.25))
    assert (found.importance.alpha, found.importance.site) == (0.5, "hidden")
    assert found.unmasking.counts(3, 1) == (1, 1, 1)
    assert (found.sampler.top_p, found.sampler.top_k) == ((0.95, 50) if model.startswith("dream") else (1.0, 0))


def test_every_published_preset_is_checked() -> None:
    lines = ["es-dllm/" + "/".join(line.split()[:2]) for line in PUBLISHED.strip().splitlines()]
    assert sorted(lines) == [name for name in PRESETS if name.startswith("es-dllm/")]


@pytest.mark.parametrize("entry", COMPONENTS, ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_a_component_is_frozen_and_explains_itself(entry: Any) -> None:
    component = CATALOGUE.build(entry.kind, ComponentConfig(entry.name))
    for name in ["anything", *(option.name for option in entry.options)]:
        with pytest.raises((attrs.exceptions.FrozenInstanceError, AttributeError)):
            setattr(component, name, 1)
    assert attrs.has(entry.factory)
    assert 10 < len(entry.summary) < 130
    assert entry.summary.endswith((".", ":"))
    assert all(len(option.help) > 5 for option in entry.options), entry.options


def test_a_configuration_is_frozen_and_every_setting_explained() -> None:
    config = CATALOGUE.configure("es-dllm")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        config.seed = 3
    assert all(field.metadata["help"] for field in attrs.fields(DecodeConfig))


@attrs.frozen
class Demanding:
    """A component with an option that must be given."""

    size: int


def test_an_option_without_a_default_must_be_given() -> None:
    catalogue = Catalogue.load({"mine": offers("esdllm_cache_stores", {"demanding": Demanding})})
    with pytest.raises(ConfigError, match="cache 'demanding': option 'size' must be given"):
        catalogue.build("cache", ComponentConfig("demanding"))
    assert catalogue.build("cache", ComponentConfig("demanding", {"size": 3})) == Demanding(3)


@pytest.mark.parametrize("where", ["file", "settings", "sets"])
def test_configure_starts_from_the_preset_that_a_layer_names_and_else_from_es_dllm(where: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('preset = "vanilla"')
    named = {"file": tmp_path / "mine.toml", "settings": {"preset": "vanilla"}, "sets": ["preset=vanilla"]}
    assert configure(**{where: named[where]}) == configure("vanilla")
    assert configure(settings=configure("vanilla").to_dict()) == configure("vanilla")
    assert configure() == configure("es-dllm") != configure("vanilla")
