"""Conformance: recorded cases of public implementations, run through the public API, and their models' logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from esdllm.errors import InputError
from esdllm.plugins.catalogue import Catalogue
from esdllm.testing.conformance.case import LOGITS, Case, Ground
from esdllm.testing.conformance.families import family_cases
from esdllm.testing.conformance.modes import mode_cases, preset_of
from esdllm.testing.conformance.result import Conformance, NotRun
from esdllm.testing.conformance.rules import rule_cases

__all__ = ["Conformance", "NotRun", "conformance"]


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

    The folder holds a list of cases beside its checkpoints, or folders that hold a checkpoint and its own cases each, or a
    file of cases for each of some decoding rules.
    `model` and `mode` take only the cases of one checkpoint or decoding mode ("logits" for recorded logits; a mode goes by
    its preset's name too). `show` is called with each case's name and problem. `overrides` are settings over those of
    every case, say another cache store; `sets` are the same as `section.option=value`. `device` is where to decode; of the
    cases that the filters leave, one of `every` is run.

    Raises:
        InputError: the folder holds no cases, or none that the filters let through.
    """
    root, ground = Path(folder), Ground(catalogue or Catalogue.load(), device, overrides or {}, sets)
    known = [*mode_cases(root, ground), *family_cases(root, ground), *rule_cases(root, ground)]
    wanted = [case for case in known if _wanted(case, model, mode)]
    if not wanted:
        if not known:
            raise InputError(f"{root} holds no cases; they are in tests/conformance of a clone of esdllm")
        raise InputError(
            f"{root} holds no case of model {model or '(any)'} and mode {mode or '(any)'}; models: "
            f"{', '.join(sorted({case.model for case in known}))}; modes: {', '.join(sorted({case.mode for case in known}))}"
        )
    logits, decoded = ([case for case in wanted if (case.mode == LOGITS) == whether] for whether in (True, False))
    seen: dict[str, str | None] = {}
    for case in sorted([*logits, *decoded[::every]], key=lambda case: case.model):
        seen[case.name] = case.run()
        show(case.name, seen[case.name])
    return Conformance(seen)


def _wanted(case: Case, model: str | None, mode: str | None) -> bool:
    return model in (None, case.model) and (mode is None or preset_of(mode) == preset_of(case.mode))
