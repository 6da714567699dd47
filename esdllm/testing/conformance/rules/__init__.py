"""Cases of decoding rules: a file per rule, with single steps, blocks step by step, whole runs, and generations.

`tests/conformance-rules/README.md` tells the form. Generations are of checkpoints in the folder `conformance` beside this one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from esdllm.testing.conformance.case import Case, Ground
from esdllm.testing.conformance.result import NotRun
from esdllm.testing.conformance.rules.blocks import run_block
from esdllm.testing.conformance.rules.components import COMPONENTS, NOT_BUILT
from esdllm.testing.conformance.rules.generations import run_generation
from esdllm.testing.conformance.rules.steps import run_step
from esdllm.testing.conformance.rules.tables import run_table

__all__ = ["rule_cases"]

_GIVEN = "given-logits"
"""what stands for a checkpoint's name where logits are given"""


def rule_cases(root: Path, ground: Ground) -> list[Case]:
    """Return the cases of every file of a folder that says which rule it is of; none where there is none."""
    found = []
    for file in sorted(root.glob("*.json")):
        recorded = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(recorded, Mapping) and "rule" in recorded:
            found += [*_of(file, recorded, ground)]
    return found


def _of(file: Path, recorded: Mapping[str, Any], ground: Ground) -> Iterator[Case]:
    rule, tensors = recorded["rule"], file.with_suffix(".safetensors")
    left, component = NOT_BUILT.get(rule), COMPONENTS.get(rule)
    if component is None and left is None:
        left = NotRun(f"the rule {rule} is not known here")
    for case in recorded["cases"]:
        form = run_block if "steps" in case else run_table if "seen" in case else run_step
        run = partial(form, ground, recorded, tensors, case)
        yield Case(case["id"], _GIVEN, rule, run if left is None else lambda: left)
    for case in recorded["generations"]:
        run = partial(run_generation, ground, file.parent.parent / "conformance", rule, case)
        yield Case(case["id"], case["model"], rule, run if left is None else lambda: left)
