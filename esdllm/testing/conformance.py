"""Token-exact conformance: cases of public implementations, run through the public API.

A folder holds `cases.json` and `official.json` (lists of cases) and one folder a checkpoint, with the logits that the public
modelling code gives in `logits.safetensors`. A case names a checkpoint, prompts, settings, and the tokens that must come out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import load_file
from torch import Tensor

from esdllm.checkpoints.loading import Model, load_model
from esdllm.config import DecodeConfig
from esdllm.errors import InputError
from esdllm.plugins.catalogue import Catalogue
from esdllm.runtime.engine import Engine
from esdllm.runtime.plain import full_logits
from esdllm.views import ModelSpec, StepRecord

__all__ = ["Conformance", "configuration", "conformance"]

_LOGITS = "logits"  # the mode that the logits files are counted under


@attrs.frozen
class Conformance:
    """What a folder's cases gave."""

    cases: Mapping[str, str | None]
    """for every case's name None, or what differs"""

    @property
    def failures(self) -> dict[str, str]:
        """The cases that differ."""
        return {name: text for name, text in self.cases.items() if text is not None}

    def __str__(self) -> str:
        failed = len(self.failures)
        return f"{len(self.cases) - failed} passed, {failed} failed"


def conformance(
    folder: Path | str,
    model: str | None = None,
    mode: str | None = None,
    show: Callable[[str, str | None], None] = lambda name, problem: None,
    overrides: Mapping[str, Any] | None = None,
    catalogue: Catalogue | None = None,
    sets: Sequence[str] = (),
    device: str = "cpu",
    every: int = 1,
) -> Conformance:
    """Run the cases of a folder and compare tokens, steps and forwards; and the logits of its checkpoints to 1e-4.

    `model` and `mode` take only the cases of one checkpoint or decoding mode ("logits" for the logits files; a mode goes by
    its preset's name too). `show` is called with each case's name and problem. `overrides` are settings over those of
    every case, say another cache store; `sets` are the same as `section.option=value`. `device` is where to decode; of the
    cases that the filters leave, one of `every` is run.

    Raises:
        InputError: the folder holds no cases, or none that the filters let through.
    """
    root, catalogue = Path(folder), catalogue or Catalogue.load()
    wanted = _preset(mode) if mode else None
    known = _cases(root)
    cases = [case for case in known if _wanted(case["model"], _preset(case["settings"]["mode"]), model, wanted)][
        ::every
    ]
    logits = [path.parent.name for path in sorted(root.glob("*/logits.safetensors"))]
    checkpoints = [name for name in logits if _wanted(name, _LOGITS, model, wanted)]
    if not cases and not checkpoints:
        if not known and not logits:
            raise InputError(f"{root} holds no cases; they are in tests/conformance of a clone of esdllm")
        models = sorted({case["model"] for case in known} | set(logits))
        modes = sorted({case["settings"]["mode"] for case in known} | ({_LOGITS} if logits else set()))
        raise InputError(
            f"{root} holds no case of model {model or '(any)'} and mode {mode or '(any)'}; models: {', '.join(models)}; "
            f"modes: {', '.join(modes)}"
        )
    runner = _Runner(root, catalogue, overrides or {}, sets, device)
    seen: dict[str, str | None] = {}
    for name, problem in runner.run(checkpoints, cases):
        seen[name] = problem
        show(name, problem)
    return Conformance(seen)


def _preset(mode: str) -> str:
    """Return the preset of a case's decoding mode; a preset is its own."""
    return {"early_skip": "es-dllm"}.get(mode, mode.replace("_", "-"))


def _wanted(model: str, mode: str, model_filter: str | None, mode_filter: str | None) -> bool:
    return model_filter in (None, model) and mode_filter in (None, mode)


def _cases(root: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in ("cases.json", "official.json"):
        if (root / name).is_file():
            found += json.loads((root / name).read_text(encoding="utf-8"))
    return found


def configuration(
    settings: Mapping[str, Any], catalogue: Catalogue, overrides: Mapping[str, Any], sets: Sequence[str] = ()
) -> DecodeConfig:
    """Return the configuration of a case's settings."""
    mode, sparse = settings["mode"], settings.get("sparse_kv")
    chosen: dict[str, Any] = {
        "gen_length": settings["gen_length"],
        "block_length": settings["block_length"],
        "delay_eos": settings.get("delay_eos", False),
        "early_stop": False,
        "cfg_scale": settings.get("cfg_scale", 0.0),
        "unmasking": _unmasking(settings),
    }
    if sparse:
        chosen["cache"] = {"name": "sparse", **sparse}
    if mode == "early_skip":
        chosen["refresh"] = {key: settings[key] for key in ("prompt_refresh", "block_refresh")}
        chosen["skip"] = {"keep": settings["keep"]}
        chosen["importance"] = {"alpha": settings["alpha"], "site": settings["variation"]}
    merged = catalogue.configure(_preset(mode), settings=chosen).to_dict()
    return catalogue.configure(None, settings={**merged, **overrides}, sets=sets)


def _unmasking(settings: Mapping[str, Any]) -> dict[str, Any]:
    if settings.get("threshold") is not None:
        return {"name": "threshold", "threshold": settings["threshold"]}
    if settings.get("dream_schedule"):
        return {"name": "time-schedule", "steps": settings["steps"], "order": settings["order"]}
    return {"name": "top-k", **{key: settings[key] for key in ("tokens_per_step", "steps") if settings.get(key)}}


class _Runner:
    """Runs cases checkpoint by checkpoint, loading each once."""

    def __init__(
        self, root: Path, catalogue: Catalogue, overrides: Mapping[str, Any], sets: Sequence[str], device: str
    ) -> None:
        self.root, self.catalogue, self.overrides, self.sets, self.device = root, catalogue, overrides, sets, device
        self._loaded: tuple[str, Model] | None = None

    def run(self, checkpoints: list[str], cases: list[dict[str, Any]]) -> Iterator[tuple[str, str | None]]:
        """Yield each case's name and what differs."""
        for name in sorted({case["model"] for case in cases} | set(checkpoints)):
            if name in checkpoints:
                yield f"{name}/{_LOGITS}", self._logits(name)
            for case in cases:
                if case["model"] == name:
                    yield case.get("id", "?"), self._tokens(case)

    def _model(self, name: str) -> Model:
        if self._loaded is None or self._loaded[0] != name:
            self._loaded = (name, load_model(self.root / name, device=self.device, catalogue=self.catalogue))
        return self._loaded[1]

    def _logits(self, name: str) -> str | None:
        expected = load_file(self.root / name / "logits.safetensors")
        adapter = self._model(name).adapter
        found = full_logits(adapter, expected["input_ids"].to(adapter.device)).cpu()
        worst = float((found - expected["logits"]).abs().max())
        return None if worst <= 1e-4 else f"logits differ by up to {worst:.3g}, where 1e-4 is allowed"

    def _tokens(self, case: Mapping[str, Any]) -> str | None:
        model = self._model(case["model"])
        config = configuration(case["settings"], self.catalogue, self.overrides, self.sets)
        engine = Engine.build(model, config, self.catalogue)
        seen = _Commits(len(case["sequences"][0]))
        prompts, mask = torch.tensor(case["input_ids"]), case.get("attention_mask")
        result = engine.generate(prompts, attention_mask=None if mask is None else torch.tensor(mask), observers=[seen])
        if result.tokens.tolist() != case["sequences"]:
            return _first_difference(result.tokens, torch.tensor(case["sequences"]))
        if "steps" in case and seen.steps != case["steps"]:
            number = next((i for i, (a, b) in enumerate(zip(seen.steps, case["steps"], strict=False)) if a != b), -1)
            return (
                f"equal tokens, but {len(seen.steps)} steps for {len(case['steps'])}, the first other one at {number}"
            )
        if result.forwards != case.get("forwards", result.forwards):
            return f"equal tokens, but {result.forwards} forwards where {case['forwards']} are expected"
        return None


def _first_difference(found: Tensor, expected: Tensor) -> str:
    if found.shape != expected.shape:
        return f"the canvas is {tuple(found.shape)}, where {tuple(expected.shape)} is expected"
    row, column = (found != expected).nonzero()[0].tolist()
    return f"row {row}, column {column}: token {found[row, column]}, where {expected[row, column]} is expected"


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
