"""Published procedures of model families: recorded greedy runs, token for token, and the presets that name them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_schedules import linear_schedule

from esdllm import Catalogue, CheckpointError, ConfigError, Engine, load_model
from esdllm.checkpoints.published import known_checkpoints
from esdllm.cli import main
from esdllm.runtime.components import Components
from esdllm.testing import conformance
from esdllm.testing.conformance import NotRun

FOLDER = Path(__file__).parent / "conformance-families"
CATALOGUE = Catalogue.load()
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/cases.json"))
PRESETS = [name for name in CATALOGUE.names("preset") if "/" in name and not name.startswith("es-dllm/")]


def runs(name: str, every: int, **sets: Any) -> dict[str, str | None]:
    """Return what differs in one of `every` recorded runs of a checkpoint."""
    modes = {
        str(case.get("sampler") or case.get("function") or case.get("version") or "greedy")
        for case in json.loads((FOLDER / name / "cases.json").read_text(encoding="utf-8"))
    }
    found: dict[str, str | None] = {}
    for mode in sorted(modes):
        found |= conformance(FOLDER, name, mode, catalogue=CATALOGUE, every=every, **sets).cases
    return found


def differing(found: dict[str, str | None]) -> dict[str, str]:
    return {case: text for case, text in found.items() if text is not None and not isinstance(text, NotRun)}


@pytest.mark.parametrize("name", NAMES)
def test_some_recorded_runs_come_out_token_for_token(name: str) -> None:
    found = runs(name, 13)
    assert found
    assert not differing(found)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("illada-0", {"remasking": "random"}),
        ("sdar-0", {"top_k": 1}),
        ("llada2_moe-0", {"temperature": 0.7}),
        ("stable_diffcoder-0", {"shift": True}),
        ("rnd1-0", {"greedy": False}),
        ("fast_dllm_v2-0", {"top_p": 0.9}),
        ("nemotron_labs_diffusion-0", {"temperature": 1.0}),
        ("open_dcoder-0", {"alg_temp": 0.1}),
        ("a2d-qwen3-0", {"scheduler": "cosine"}),
    ],
)
def test_a_recorded_setting_that_no_procedure_has_is_told_and_not_passed_over(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for file in ("config.json", "model.safetensors"):
        (folder / file).symlink_to(FOLDER / name / file)
    case = json.loads((FOLDER / name / "cases.json").read_text(encoding="utf-8"))[0]
    case["settings"] |= settings
    (folder / "cases.json").write_text(json.dumps([case]), encoding="utf-8")
    (text,) = conformance(tmp_path, catalogue=CATALOGUE).cases.values()
    ((setting, value),) = settings.items()
    assert text == f"{setting} = {value!r}: no procedure here has this setting"
    assert isinstance(text, NotRun)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_recorded_run_comes_out_token_for_token(name: str) -> None:
    found = runs(name, 1)
    assert not differing(found)
    reasons = {str(text).partition(":")[0] for text in found.values() if isinstance(text, NotRun)}
    assert reasons <= {"right_shift_logits in blocks"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdar-0", "llada2_moe-0", "nemotron_labs_diffusion-0", "stable_diffcoder-0"])
def test_recorded_runs_come_out_whether_a_step_computes_its_block_or_all_before_it(name: str) -> None:
    for refresh in ("every-step", "dual-cache", "prefix-cache"):
        found = runs(name, 3, overrides={"refresh": {"name": refresh}})
        assert not {case: text for case, text in differing(found).items() if "forwards" not in text}


@pytest.mark.parametrize("name", PRESETS)
def test_a_published_procedure_can_be_planned_at_its_own_length_and_at_others(name: str) -> None:
    config = CATALOGUE.configure(name)
    assert (config.delay_eos, config.skip.name) == (False, "none")
    for length in (config.gen_length, 24):
        found = Components.resolve(CATALOGUE.configure(name, settings={"gen_length": length}), CATALOGUE)
        spec = load_model(FOLDER / "open_dcoder-0", "cpu", family="open-dcoder,mask_token_id=158").spec
        assert found.planner(found.layout(2, spec), spec.n_layers).forecast()


def test_presets_are_named_by_family_and_procedure() -> None:
    assert all(name.count("/") == 1 for name in PRESETS)
    assert {name.partition("/")[0] for name in PRESETS} == {
        "a2d",
        "fast-dllm-v2",
        "illada",
        "llada-moe",
        "llada2",
        "nemotron",
        "open-dcoder",
        "rnd1",
        "sdar",
        "stable-diffcoder",
    }


def test_a_quota_above_the_masks_left_takes_nothing_that_is_known() -> None:
    """SDAR's own code overwrites the prompt here: five of a block's eight tokens are given, and a step commits four."""
    model = load_model(FOLDER / "sdar-0", "cpu", family="sdar,block_size=8")
    prompt = list(range(1, 14))
    for name in ("sdar/static", "sdar/sequential", "sdar/dynamic"):
        unmasking = {"steps_per_block": 2} | ({} if name == "sdar/dynamic" else {"spread": "block"})
        config = CATALOGUE.configure(name, settings={"gen_length": 11, "early_stop": False, "unmasking": unmasking})
        result = Engine.build(model, config, CATALOGUE).generate([prompt])
        assert result.tokens[0, :13].tolist() == prompt
        assert model.spec.mask_id not in result.tokens[0].tolist()
        assert name == "sdar/dynamic" or result.forwards == 1 + 2


def test_a_prompt_of_exactly_one_block_is_seen_by_the_next() -> None:
    """Fast-dLLM's own code decodes as if there were no prompt where it fills one block."""
    model = load_model(FOLDER / "fast_dllm_v2-0", "cpu", family="fast-dllm-v2,block_size=8,mask_token_id=158")
    config = CATALOGUE.configure("fast-dllm-v2/static", settings={"gen_length": 8, "early_stop": False})
    engine = Engine.build(model, config, CATALOGUE)
    one, other = (engine.generate([prompt]).tokens[0, 8:].tolist() for prompt in ([*range(8)], [*range(20, 28)]))
    assert one != other


def test_only_an_mdlm_model_can_be_said_to_tell_the_next_token() -> None:
    told = "mask_token_id=158,right_shift_logits=true"
    assert load_model(FOLDER / "a2d-qwen2-0", "cpu", family=f"a2d-qwen2-mdlm,{told}").spec.logit_shift == 1
    with pytest.raises(CheckpointError, match="no position before a block tells the block's first token in bd3lm"):
        load_model(FOLDER / "a2d-qwen2-0", "cpu", family=f"a2d-qwen2-bd3lm,{told}")


def test_steps_of_a_bd3lm_run_are_shared_by_its_blocks() -> None:
    found = Components.resolve(CATALOGUE.configure("a2d/bd3lm", sets=["unmasking.steps=20"]), CATALOGUE)
    assert found.unmasking.counts(8, 3) == linear_schedule(8, 7)
    with pytest.raises(ConfigError, match="steps = 128 and steps_per_block = 4 contradict"):
        Components.resolve(CATALOGUE.configure("a2d/bd3lm", sets=["unmasking.steps_per_block=4"]), CATALOGUE)


def test_a_list_of_long_names_keeps_every_name_whole_at_80_and_at_40_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [name for name in known_checkpoints(Catalogue.load()) if len(name) > 36]
    for columns in (80, 40):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main(["models", "list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert names
        assert all(any(line.split()[:1] == [name] for line in lines) for name in names)
        assert all(len(line) <= max(columns, 50) for line in lines)
