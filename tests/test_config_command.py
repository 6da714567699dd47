"""`esdllm config show` and `validate`: what holds and from where, and all that is wrong with a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from helpers import offers
from hypothesis import given
from hypothesis import strategies as st
from projects import Run

from esdllm import Catalogue, ComponentConfig, configure
from esdllm.config.layers import line_numbers

CATALOGUE = Catalogue.load()


@pytest.mark.parametrize("preset", CATALOGUE.names("preset"))
def test_what_show_prints_reads_back_as_the_same_configuration(preset: str, folder: Path, run: Run) -> None:
    code, out, _ = run("config", "show", "--preset", preset)
    assert code == 0
    (folder / "shown.toml").write_text(out, encoding="utf-8")
    assert configure(file=folder / "shown.toml") == configure(preset)


def test_show_names_the_origin_of_each_value(project: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESDLLM_SEED", "5")
    _, out, _ = run("config", "show", "--profile", "fast", "-s", "importance.alpha=0.7", "--gen-length", "8")
    lines = [tuple(part.strip() for part in line.split("  #")) for line in out.splitlines()]
    assert "# preset es-dllm (esdllm.toml:1)" in out
    for line in [
        ("gen_length = 8", "--gen-length"),
        ("block_length = 16", "esdllm.toml:9, profile fast"),
        ("seed = 5", "ESDLLM_SEED"),
        ("cfg_scale = 0.0", "default"),
        ('name = "periodic"', "preset es-dllm"),
        ("block_refresh = 8", "esdllm.toml:6"),
        ("# prompt_refresh = 64", "default"),
        ("alpha = 0.7", "--set"),
        ('name = "threshold"', "esdllm.toml:10, profile fast"),
        ("threshold = 0.8", "esdllm.toml:10, profile fast"),
    ]:
        assert line in lines


keys = st.text("abc-_é ", min_size=1, max_size=3)
trees = st.recursive(
    st.integers() | st.text('a\n"[]=#', max_size=4) | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(keys, trees, max_size=4))
def test_every_key_of_a_file_has_its_line(tree: dict[str, Any]) -> None:
    import tomli_w

    text = tomli_w.dumps(tree)

    def paths(table: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for key, value in table.items():
            yield (*above, key)
            if isinstance(value, dict):
                yield from paths(value, (*above, key))

    found, lines = line_numbers(text), text.split("\n")
    for path in paths(tree):
        key = tomli_w.dumps({path[-1]: 0}).rpartition(" = ")[0]
        assert key in lines[found[path] - 1]
    assert set(found) == set(paths(tree))


def test_a_component_inside_a_component_may_be_there_by_default() -> None:
    @attrs.frozen
    class Around:
        """Blocks around others."""

        of: Any = attrs.field(
            factory=lambda: CATALOGUE.build("blocks", ComponentConfig("fixed")), metadata={"kind": "blocks"}
        )

    catalogue = Catalogue.load({"mine": offers("esdllm_block_schedules", {"around": Around})})
    assert catalogue.build("blocks", ComponentConfig("around")) == Around()
    assert catalogue.build("blocks", ComponentConfig("around", {"of": "fixed"})) == Around()


# validate


def test_validate_prints_every_problem_of_every_profile_once(project: Path, run: Run) -> None:
    (project / "esdllm.toml").write_text(
        """
gen_length = 0
sede = 1
[profiles.fast]
block_length = "long"
cheks = 3
"""
    )
    code, out, err = run("config", "validate")
    assert code == 1
    assert [line.split(" ")[0] for line in out.splitlines()] == [
        "esdllm.toml:3:",
        "esdllm.toml:2:",
        "esdllm.toml:6,",
        "esdllm.toml:5,",
    ]
    assert err.splitlines()[-1] == "4 problems"


def test_validate_finds_every_option_that_is_wrong(folder: Path, run: Run) -> None:
    (folder / "run.toml").write_text(
        """
[sampler]
top_p = 2.0
top_k = "all"
topk = 3
temperature = 0.5
[unmasking]
tokens_per_step = 2
steps = 4
[importance]
name = "mix"
parts = [{ name = "randm" }]
"""
    )
    code, out, _ = run("config", "validate", "run.toml")
    assert code == 1
    starts = ["run.toml:5: sampler 'gumbel' has no option 'topk'", "run.toml:3: sampler", "run.toml:4: sampler"]
    for start in [*starts, "run.toml:12: importance.parts[0]: unknown importance 'randm'"]:
        assert sum(line.startswith(start) for line in out.splitlines()) == 1, start
    assert "tokens_per_step = 2 and steps = 4 contradict" in out
    assert len(out.splitlines()) == 5


def test_validate_praises_what_is_good_and_reads_many_files(project: Path, run: Run) -> None:
    (project / "run.toml").write_text("seed = 1")
    code, out, err = run("config", "validate", "esdllm.toml", "run.toml")
    assert (code, out) == (0, "")
    assert err == "esdllm.toml: good, with 2 profiles: fast, exact\nrun.toml: good\n"
    assert run("config", "validate", "run.toml", "missing.toml")[0] == 1


def test_validate_with_a_model_finds_contradictions(folder: Path, run: Run) -> None:
    (folder / "esdllm.toml").write_text('cache = "none"')
    assert run("config", "validate")[0] == 0
    code, out, _ = run("config", "validate", "--model", "tiny-llada")
    assert code == 1
    assert out.startswith("esdllm.toml: early skipping reads keys that the cache store does not hold")


def test_config_alone_tells_what_it_can_do(run: Run) -> None:
    code, out, err = run("config")
    assert (code, err) == (0, "")
    assert all(f"  {word}" in out for word in ("show", "validate", "schema"))
