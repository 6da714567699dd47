"""Cases of the public implementations of ES-dLLM, DualCache, prefix cache and plain decoding, by LLaDA and Dream.

A folder holds `cases.json` and `official.json` (lists of cases) and one folder a checkpoint, with the logits that the public
modelling code gives in `logits.safetensors`. A case names a checkpoint, prompts, settings, and the tokens that must come out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from esdllm.runtime.engine import Engine
from esdllm.runtime.plain import full_logits
from esdllm.testing.conformance.case import LOGITS, Case, Ground
from esdllm.testing.conformance.result import first_difference, worst_difference
from esdllm.views import ModelSpec, StepRecord

__all__ = ["mode_cases", "preset_of"]

_FILES = ("cases.json", "official.json")


def mode_cases(root: Path, ground: Ground) -> list[Case]:
    """Return the cases of a folder that has a list of them, and its checkpoints' logits before them; none elsewhere."""
    if (root / "config.json").is_file():  # a checkpoint with its own cases
        return []
    found = [
        Case(f"{name}/{LOGITS}", name, LOGITS, partial(_logits, ground, root / name)) for name in _with_logits(root)
    ]
    for file in (root / name for name in _FILES):
        for case in json.loads(file.read_text(encoding="utf-8")) if file.is_file() else ():
            run = partial(_tokens, ground, root / case["model"], case)
            found.append(Case(case.get("id", "?"), case["model"], case["settings"]["mode"], run))
    return found


def preset_of(mode: str) -> str:
    """Return the preset of a case's decoding mode; a preset is its own."""
    return {"early_skip": "es-dllm"}.get(mode, mode.replace("_", "-"))


def _with_logits(root: Path) -> list[str]:
    """Return the checkpoints that have logits, and no list of cases of their own."""
    return [
        file.parent.name
        for file in sorted(root.glob("*/logits.safetensors"))
        if not file.with_name("cases.json").exists()
    ]


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a case's settings are called here."""
    chosen: dict[str, Any] = {
        "gen_length": settings["gen_length"],
        "block_length": settings["block_length"],
        "delay_eos": settings.get("delay_eos", False),
        "early_stop": False,
        "cfg_scale": settings.get("cfg_scale", 0.0),
        "unmasking": _unmasking(settings),
    }
    if settings.get("sparse_kv"):
        chosen["cache"] = {"name": "sparse", **settings["sparse_kv"]}
    if settings["mode"] == "early_skip":
        chosen["refresh"] = {key: settings[key] for key in ("prompt_refresh", "block_refresh")}
        chosen["skip"] = {"keep": settings["keep"]}
        chosen["importance"] = {"alpha": settings["alpha"], "site": settings["variation"]}
    return chosen


def _unmasking(settings: Mapping[str, Any]) -> dict[str, Any]:
    if settings.get("threshold") is not None:
        return {"name": "threshold", "threshold": settings["threshold"]}
    if settings.get("dream_schedule"):
        return {"name": "time-schedule", "steps": settings["steps"], "order": settings["order"]}
    return {"name": "top-k", **{key: settings[key] for key in ("tokens_per_step", "steps") if settings.get(key)}}


def _logits(ground: Ground, folder: Path) -> str | None:
    expected = load_file(folder / "logits.safetensors")
    adapter = ground.load(folder).adapter
    return worst_difference(full_logits(adapter, expected["input_ids"].to(adapter.device)).cpu(), expected["logits"])


def _tokens(ground: Ground, folder: Path, case: Mapping[str, Any]) -> str | None:
    config = ground.configured(preset_of(case["settings"]["mode"]), _settings(case["settings"]))
    engine = Engine.build(ground.load(folder), config, ground.catalogue)
    seen = _Commits(len(case["sequences"][0]))
    prompts, mask = torch.tensor(case["input_ids"]), case.get("attention_mask")
    result = engine.generate(prompts, attention_mask=None if mask is None else torch.tensor(mask), observers=[seen])
    if result.tokens.tolist() != case["sequences"]:
        return first_difference(result.tokens, torch.tensor(case["sequences"]))
    if "steps" in case and seen.steps != case["steps"]:
        number = next((i for i, (a, b) in enumerate(zip(seen.steps, case["steps"], strict=False)) if a != b), -1)
        return f"equal tokens, but {len(seen.steps)} steps for {len(case['steps'])}, the first other one at {number}"
    if result.forwards != case.get("forwards", result.forwards):
        return f"equal tokens, but {result.forwards} forwards where {case['forwards']} are expected"
    return None


class _Commits:
    """Notes which columns each step commits, of a canvas of `length`: the engine may have put padding before all rows."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.steps: list[Any] = []

    def start(self, tokens: Tensor, spec: ModelSpec) -> None:
        """Nothing is known before the first step."""

    def step(self, record: StepRecord) -> None:
        """Note the step's block, and each row's columns."""
        room = record.tokens.shape[1] - self.length
        rows = [row[room:].nonzero()[:, 0].tolist() for row in record.committed]
        self.steps.append([record.moment.block, rows])

    def end(self) -> None:
        """Nothing is left to do."""
