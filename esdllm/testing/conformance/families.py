"""Cases of model families: a folder a family, with a tiny checkpoint, its logits under several masks, and greedy runs.

`tests/conformance-families/README.md` tells the form.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from esdllm.checkpoints.families import recognised
from esdllm.errors import EsdllmError
from esdllm.testing.conformance.case import LOGITS, Case, Ground
from esdllm.testing.conformance.greedy import run_greedy
from esdllm.testing.conformance.logits import recorded_logits
from esdllm.testing.conformance.readers import READERS
from esdllm.testing.conformance.result import NotRun, worst_difference

__all__ = ["family_cases"]

_FAMILIES: Mapping[str, str] = {
    "a2d-qwen3": "a2d-qwen3-mdlm",
    "a2d-qwen2": "a2d-qwen2-mdlm",
    "a2d-llama": "a2d-llama-mdlm",
    "qwen2": "open-dcoder",
}
"""The family that has the logits of a checkpoint whose config.json does not tell it, by `model_type`."""

_NOT_BUILT: Mapping[str, NotRun] = {
    "lfm2": NotRun(
        "no family here reads lfm2: its convolutions make of a position what its neighbours' states say, and a step computes "
        "a choice of positions, of which neighbours may be left out"
    )
}
"""Why the checkpoints of a `model_type` are not run."""


def family_cases(root: Path, ground: Ground) -> list[Case]:
    """Return the cases of every folder below `root`, or of `root` itself, that holds a checkpoint and cases of its own."""
    folders = [root] if (root / "config.json").is_file() else sorted(root.glob("*/"))
    return [case for folder in folders if (folder / "cases.json").is_file() for case in _of(folder, ground)]


def _of(folder: Path, ground: Ground) -> Iterator[Case]:
    config = _json(folder / "config.json")
    told, kind = _told(folder, config), str(config.get("model_type"))
    left = _NOT_BUILT.get(kind)
    logits = folder / "logits.safetensors"
    if logits.is_file():
        with safe_open(logits, "pt") as file:
            names = [name for name in file.keys() if name.startswith("logits_")]  # noqa: SIM118  # no mapping
        for name in sorted(names):
            run = partial(_logits, ground, folder, kind, told, name)
            yield Case(f"{folder.name}/{name}", folder.name, LOGITS, run if left is None else lambda: left)
    for case in _json(folder / "cases.json"):
        procedure = str(case.get("sampler") or case.get("function") or case.get("version") or "")
        run = partial(_tokens, ground, folder, kind, procedure, told, case)
        yield Case(case["id"], folder.name, procedure or "greedy", run if left is None else lambda: left)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _told(folder: Path, config: Mapping[str, Any]) -> str:
    """Return what config.json lacks, and the public files tell elsewhere, as a user tells it beside the family's name."""
    tokens = folder / "tokens.json"
    ids = _json(tokens) if tokens.is_file() else {"mask_token_id": _json(folder / "cases.json")[0]["mask_id"]}
    lacks = [key for key in ("mask_token_id", "eos_token_id") if config.get(key) is None and key in ids]
    return "".join(f",{key}={ids[key]}" for key in lacks)


def _logits(ground: Ground, folder: Path, kind: str, told: str, name: str) -> str | None:
    recorded, family = load_file(folder / "logits.safetensors"), _FAMILIES.get(kind)
    if family is not None and family not in ground.catalogue.names("model"):
        return NotRun(f"no plugin here offers the model '{family}'")
    try:
        family = family or recognised(folder, _json(folder / "config.json"), ground.catalogue)
        model = ground.load(folder, f"{family}{told}")
    except EsdllmError as error:
        return f"{type(error).__name__}: {error}"
    shared = {key: value for key, value in recorded.items() if not key.startswith("logits_")}
    for _, found, expected in recorded_logits(model.adapter, {**shared, name: recorded[name]}):
        return worst_difference(found, expected)
    return NotRun("logits of a kind that is not known here")


def _tokens(ground: Ground, folder: Path, kind: str, procedure: str, told: str, case: Mapping[str, Any]) -> str | None:
    reader = READERS.get(kind, {}).get(procedure)
    if reader is None:
        return NotRun(f"no reader of runs of {kind}{f', {procedure}' if procedure else ''}")
    return run_greedy(ground, folder, reader(case, told))
