"""Settings without a command line: the project's file, its profiles, the environment; what goes over what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from projects import Run

from esdllm import Catalogue, DecodeConfig, configure, find_project
from esdllm.cli.app import app
from esdllm.config.project import environment_sets

CATALOGUE = Catalogue.load()


def shown(run: Run, *words: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration that a command would use, and the origins of its values."""
    code, out, err = run("config", "show", "--json", *words)
    assert code == 0, err
    told = json.loads(out)
    return told["config"], told["origins"]


# where the file is


def test_the_nearest_file_is_the_project_s(project: Path) -> None:
    inner = project / "a" / "b"
    inner.mkdir(parents=True)
    assert find_project(inner).path == project / "esdllm.toml"
    (project / "a" / "esdllm.toml").write_text("seed = 1")
    assert find_project(inner).path == project / "a" / "esdllm.toml"
    assert configure(project=find_project(inner)).gen_length == 256


def test_the_search_ends_at_a_folder_with_git(project: Path) -> None:
    inner = project / "repository" / "folder"
    inner.mkdir(parents=True)
    (project / "repository" / ".git").write_text("gitdir: elsewhere")
    assert find_project(inner).path is None
    assert configure(project=find_project(inner)) == configure()


def test_a_table_of_pyproject_serves_and_esdllm_toml_beside_it_goes_before_it(folder: Path) -> None:
    (folder / "pyproject.toml").write_text('[project]\nname = "x"\n')
    assert find_project().path is None
    (folder / "pyproject.toml").write_text("[tool.esdllm]\nseed = 7\n[tool.esdllm.profiles.fast]\nseed = 8\n")
    assert configure(project=find_project()).seed == 7
    assert configure(project=find_project(profile="fast")).seed == 8
    (folder / "esdllm.toml").write_text("seed = 9")
    assert configure(project=find_project()).seed == 9


def test_a_variable_names_the_file_or_none(project: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "other.toml").write_text("gen_length = 7")
    monkeypatch.setenv("ESDLLM_PROJECT", "other.toml")
    assert shown(run)[0]["gen_length"] == 7
    monkeypatch.setenv("ESDLLM_PROJECT", "none")
    assert shown(run)[0] == configure().to_dict()
    assert "ESDLLM_PROJECT=none leaves the project's file unread" in run("config", "show", "--profile", "fast")[2]


def test_a_call_reads_neither_the_project_s_file_nor_the_environment(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = CATALOGUE.configure("es-dllm")
    monkeypatch.setenv("ESDLLM_GEN_LENGTH", "7")
    monkeypatch.setenv("ESDLLM_PRESET", "vanilla")
    assert configure() == expected
    assert configure(project=find_project()) == CATALOGUE.configure(
        "es-dllm", settings={"gen_length": 64, "block_length": 32, "refresh": {"block_refresh": 8}}
    )


# what goes over what


def test_each_place_goes_over_those_below_it(project: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Preset, file, profile, --config, environment, command line: each has the last word on one setting and no other."""
    names = ["gen_length", "block_length", "seed", "cfg_scale", "check_every"]
    places = {"esdllm.toml": 1, "profile fast": 2, "more.toml": 3, "ESDLLM_": 4, "--": 5}
    said = {rank: dict.fromkeys(names[rank - 1 :], 10 * rank) for rank in places.values()}

    def toml(rank: int) -> str:
        return "".join(f"{name} = {value}\n" for name, value in said[rank].items())

    (project / "esdllm.toml").write_text(f"{toml(1)}[profiles.fast]\n{toml(2)}", encoding="utf-8")
    (project / "more.toml").write_text(toml(3), encoding="utf-8")
    for name, value in said[4].items():
        monkeypatch.setenv(f"ESDLLM_{name.upper()}", str(value))
    sets = [word for name, value in said[5].items() for word in ("--set", f"{name}={value}")]
    config, origins = shown(run, "--profile", "fast", "--config", "more.toml", *sets)
    for place, rank in places.items():
        assert config[names[rank - 1]] == 10 * rank
        assert place in origins[names[rank - 1]]


def test_a_profile_goes_over_the_file_and_keeps_the_rest_of_it(project: Path) -> None:
    found = configure(project=find_project(profile="fast"))
    assert (found.gen_length, found.block_length) == (64, 16)
    assert found.refresh.options == {"block_refresh": 8}
    assert found.unmasking.options == {"threshold": 0.8}


@pytest.mark.parametrize("where", ["profile", "command line", "environment", "config", "argument", "set"])
def test_whoever_names_a_preset_gets_its_components_and_the_project_s_run_wide_settings(
    where: str, project: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = configure("vanilla", settings={"gen_length": 64, "block_length": 32}).to_dict()
    (project / "base.toml").write_text('preset = "vanilla"')
    words = {
        "profile": ["--profile", "exact"],
        "command line": ["--preset", "vanilla"],
        "config": ["--config", "base.toml"],
        "set": ["--set", "preset=vanilla"],
    }
    if where == "argument":
        assert configure("vanilla", project=find_project()).to_dict() == expected
        return
    if where == "environment":
        monkeypatch.setenv("ESDLLM_PRESET", "vanilla")
    assert shown(run, *words.get(where, []))[0] == expected
    assert (
        "preset vanilla chooses the components; the project's refresh are left aside"
        in run("config", "show", *words.get(where, []))[2]
    )


def test_a_complete_file_is_not_changed_by_the_project_s_components(project: Path, run: Run) -> None:
    (project / "full.toml").write_text(configure("es-dllm").to_toml(), encoding="utf-8")
    assert shown(run, "--config", "full.toml")[0] == configure("es-dllm").to_dict()


def test_the_command_line_goes_before_the_environment_in_the_choice_of_a_preset(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESDLLM_PRESET", "dual-cache")
    assert shown(run, "--preset", "vanilla")[0] == configure("vanilla").to_dict()
    assert shown(run)[0] == configure("dual-cache").to_dict()


def test_the_environment_chooses_a_component_before_it_sets_its_options(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ESDLLM_UNMASKING__THRESHOLD", "0.8")
    monkeypatch.setenv("ESDLLM_UNMASKING", "threshold")
    monkeypatch.setenv("ESDLLM_SEED", "")
    config, origins = shown(run)
    assert config["unmasking"] == {"name": "threshold", "threshold": 0.8}
    assert origins["unmasking.threshold"] == "ESDLLM_UNMASKING__THRESHOLD"
    assert config["seed"] == 0


def test_every_command_with_presets_takes_profiles() -> None:
    group: Any = typer.main.get_command(app)
    context = typer.Context(group)
    commands = {name: group.get_command(context, name) for name in group.list_commands(context)}
    commands |= commands.pop("config").commands
    options = {name: {text for one in command.params for text in one.opts} for name, command in commands.items()}
    found = {name for name in options if "--preset" in options[name]}
    assert {"generate", "eval", "tune", "show"} <= found
    assert not [name for name in found if "--profile" not in options[name]]


def test_every_command_says_once_which_file_its_settings_are_from(project: Path, run: Run) -> None:
    for words in (["explain"], ["doctor"], ["config", "show"]):
        _, out, err = run(*words, "--profile", "fast")
        assert err == "settings from esdllm.toml, profile fast\n"
        assert "settings from" not in out


@pytest.mark.slow
def test_a_profile_is_a_contender_and_presets_beside_it_share_its_project_s_run_wide_settings(
    project: Path, run: Run
) -> None:
    code, out, err = run("eval", "-p", "vanilla", "--profile", "fast", "--count", "1", "--json", "-s", "gen_length=8")
    assert code == 0, err
    found = {one["name"]: one["config"] for one in json.loads(out)["contenders"]}
    assert found["fast"]["unmasking"] == {"name": "threshold", "threshold": 0.8}
    assert [found[name]["block_length"] for name in ("vanilla", "fast")] == [32, 16]


# what is wrong is told with its place


def told(run: Run, *words: str) -> str:
    code, _, err = run(*words)
    assert code == 2
    return err.splitlines()[-1]


WRONG: list[tuple[str, str]] = [
    ("seed = 1\n\ngen_lenght = 3", "esdllm.toml:3: unknown setting 'gen_lenght'; did you mean 'gen_length'?"),
    ("gen_length = 0", "esdllm.toml:1: 'gen_length' must be >= 1: 0"),
    ("compile = 1", "esdllm.toml:1: setting 'compile': 1 is not a bool; write true or false"),
    ("[refresh]\nblock_refesh = 3", "esdllm.toml:2: refresh 'periodic' has no option 'block_refesh'"),
    ("[refresh]\nblock_refresh = 0", "esdllm.toml:2: refresh 'periodic': 'block_refresh' must be >= 1: 0"),
    ("cache = 3", "esdllm.toml:1: cache = 3: give a name, or a table of options"),
    ('cache = "gpu"', "esdllm.toml:1: unknown cache 'gpu'; known: "),
    ('preset = "es-dlm"', "esdllm.toml:1: unknown preset 'es-dlm'; did you mean 'es-dllm'?"),
    ("profiles = 3", "esdllm.toml: profiles = 3: write a table a profile"),
    ("profiles.fast = 3", "esdllm.toml: profiles.fast = 3: write a table, [profiles.fast]"),
    ("seed = ", "esdllm.toml is not TOML: "),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=str)
def test_an_error_names_the_file_and_the_line(text: str, message: str, folder: Path, run: Run) -> None:
    (folder / "esdllm.toml").write_text(text)
    assert message.split(":", 1)[-1] in (said := told(run, "config", "show"))
    assert "esdllm.toml" in said
    code, out, _ = run("config", "validate")
    assert code == 1
    assert message in out


def test_an_error_of_a_profile_names_the_profile(project: Path, run: Run) -> None:
    (project / "esdllm.toml").write_text("[profiles.fast]\nsede = 3")
    assert told(run, "config", "show", "--profile", "fast").startswith("error: esdllm.toml:2, profile fast: unknown")
    assert "unknown profile 'fsat'; did you mean 'fast'?" in told(run, "config", "show", "--profile", "fsat")


def test_a_profile_without_a_file_is_an_error_that_says_what_to_write(folder: Path, run: Run) -> None:
    assert "write one with a table [profiles.fast]" in told(run, "explain", "--profile", "fast")


def test_profiles_belong_to_the_project_s_file(project: Path, run: Run) -> None:
    (project / "esdllm.toml").rename(project / "run.toml")
    assert "run.toml has profiles, which only a project's file may" in told(run, "explain", "--config", "run.toml")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ESDLLM_GEN_LENGHT", "3", "unknown environment variable ESDLLM_GEN_LENGHT; did you mean 'ESDLLM_GEN_LENGTH'?"),
        ("ESDLLM_DISABLE_PLUGIN", "x", "did you mean 'ESDLLM_DISABLE_PLUGINS'?"),
        ("ESDLLM_GEN_LENGTH", "0", "ESDLLM_GEN_LENGTH: 'gen_length' must be >= 1: 0"),
        ("ESDLLM_GEN_LENGTH", "many", "ESDLLM_GEN_LENGTH: setting 'gen_length': 'many' is not an int"),
        ("ESDLLM_REFRESH__", "3", "ESDLLM_REFRESH__: cannot read the setting 'refresh.=3'"),
        ("ESDLLM_REFRESH__PROMT_REFRESH", "3", "ESDLLM_REFRESH__PROMT_REFRESH: refresh 'periodic' has no option"),
        ("ESDLLM_PRESET", "vanila", "ESDLLM_PRESET: unknown preset 'vanila'; did you mean 'vanilla'?"),
        ("ESDLLM_PROFILE", "fast", "no profile 'fast': there is no esdllm.toml"),
    ],
)
def test_an_error_names_the_variable(
    name: str, value: str, message: str, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert message in told(run, "config", "show")


def test_no_variable_has_two_meanings() -> None:
    """What the environment can set is none of the names that say something else."""
    for name in ("DISABLE_PLUGINS", "MODEL", "PRESET", "PROFILE", "PROJECT"):
        assert environment_sets({f"ESDLLM_{name}": "x"}) == {}
        assert name.lower() not in DecodeConfig.__annotations__
